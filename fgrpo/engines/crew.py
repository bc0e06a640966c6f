"""Worker processes: hired together, replaced when they die, and handed one job at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from fgrpo.config import Config
from fgrpo.engines.shared import SharedMemory
from fgrpo.engines.worker import Done, Job, Opened, Refused, Stage, serve
from fgrpo.errors import RunError
from fgrpo.processes import forking_context, last_words


@dataclass(frozen=True)
class Died:
    """What a job gave whose worker died.

    Attributes:
        how: the end of a sentence that begins with the worker.
    """

    how: str


@dataclass(eq=False)
class _Worker:
    """A process, the line to it, and the number of the job that it is doing."""

    process: BaseProcess
    line: Connection
    is_open: bool = False
    job: int | None = None

    def take(self, number: int, job: Job) -> bool:
        """Hand it a job; False if it is no longer there to take it."""
        try:
            self.line.send(job)
        except OSError:
            return False
        self.job = number
        return True


class Crew:
    """Processes that each have the model and play clients.

    They are forked from a server process that has imported what they need: it is imported once, and whoever takes the
    place of a dead worker is there soon. Each loads the model by itself.

    Attributes:
        opened: what the first worker to be ready found in the configuration.
        params_P: float32 [P], seen by all workers.

    Raises:
        FgrpoError: the configuration cannot be used, as in process; or a worker died of loading the model.
    """

    opened: Opened

    def __init__(self, config: Config, count: int, threads: int) -> None:
        self._arguments = (config, threads)
        self._context = _context(config)
        self._workers: list[_Worker] = []
        self._shared: list[SharedMemory] = []  # the parameters; then, if there are any, those that nobody trains
        try:
            for _ in range(count):
                self._hire()
            while not self._shared:
                for _ in self._news():
                    pass
        except BaseException:
            self.close()
            raise
        self.params_P = self._shared[0].bytes.view(torch.float32)

    def close(self) -> None:
        """End the workers, whatever they are doing: they hold nothing that anybody needs."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.line.close()
        self._workers.clear()
        for memory in self._shared:
            memory.close()

    def do(self, jobs: Sequence[Job], on_stage: Callable[[Job, str], None] = lambda job, stage: None) -> list[Any]:
        """Have jobs done, begun in this order, and return what each gave: its result, or `Died`."""
        waiting, results = deque(enumerate(jobs)), dict[int, Any]()
        while len(results) < len(jobs):
            for worker in self._workers:
                if waiting and worker.is_open and worker.job is None and worker.take(*waiting[0]):
                    waiting.popleft()
            for number, message in self._news():
                if isinstance(message, Stage):
                    on_stage(jobs[number], message.stage)
                else:
                    results[number] = message.result if isinstance(message, Done) else message
                    on_stage(jobs[number], "done")
        return [results[number] for number in range(len(jobs))]

    def _news(self) -> Iterator[tuple[int, Stage | Done | Died]]:
        """Wait for messages, and yield those on a job with the job's number."""
        workers = {worker.line: worker for worker in self._workers}
        for line in connections.wait(list(workers)):
            worker = workers[line]  # type: ignore[index]
            try:
                message = worker.line.recv()
            except (EOFError, OSError):  # the latter if it died within a message
                message = Died(last_words(worker.process))
                self._replace(worker, message)
            if isinstance(message, Opened):
                self._welcome(worker, message)
            elif isinstance(message, Refused):
                raise message.error or RuntimeError(f"in a worker process: {message.traceback}")
            elif worker.job is not None:
                yield worker.job, message
                if not isinstance(message, Stage):
                    worker.job = None

    def _hire(self) -> None:
        ours, theirs = self._context.Pipe()
        # Not daemonic: a reward may have processes of its own.
        process = self._context.Process(target=serve, args=(theirs, *self._arguments), name="fgrpo worker")
        process.start()
        theirs.close()  # so that ours ends when the process does
        self._workers.append(_Worker(process, ours))

    def _welcome(self, worker: _Worker, opened: Opened) -> None:
        if not self._shared:
            self.opened = opened
            sizes = [4 * opened.manifest.size, *([opened.frozen] if opened.frozen else [])]
            self._shared = [SharedMemory.new(size) for size in sizes]
        try:
            for memory in self._shared:
                memory.send(worker.line, worker.process.pid)
        except OSError:  # it died since; the next message from it says how
            return
        worker.is_open = True

    def _replace(self, worker: _Worker, end: Died) -> None:
        self._workers.remove(worker)
        worker.line.close()
        if worker.is_open:
            self._hire()
        elif not self._workers:  # while there are others, they go on without one that cannot even load the model
            raise RunError(f"engine: a worker process {end.how} while it loaded the model; try fewer engine.workers")


def _context(config: Config) -> Any:
    """Return the way to start processes, its server started and told what to import."""
    tasks = [task for client in config.clients.values() for task in client.tasks]
    modules = ["fgrpo.engines.workplace", "transformers.modeling_utils", "transformers.models.auto.modeling_auto"]
    modules += ["peft"] if config.lora is not None else []
    modules += ["fgrpo.client.tasks.gym"] if any(task.reasoning_gym for task in tasks) else []
    return forking_context(modules)
