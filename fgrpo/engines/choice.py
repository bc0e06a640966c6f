"""Which engine a run gets, and its start."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fgrpo.client.model import model_source, resolve_device
from fgrpo.config import Config, EngineConfig
from fgrpo.engines.base import Engine
from fgrpo.hub import hub_or_disk
from fgrpo.participation import clients_per_round

_SMALL = 50_000_000  # parameters; below, threads cost more than they bring
_PROCESS_BYTES = 1_000_000_000  # libraries, and what a small batch takes


def chosen(config: Config) -> EngineConfig:
    """Return `config.engine` with its numbers decided, for this machine and this model."""
    workers, threads = 0 if config.engine.stacked else config.engine.workers, config.engine.threads
    cores, parameters = _cores(), _parameters(config)
    if threads is None and "OMP_NUM_THREADS" in os.environ:
        threads = torch.get_num_threads()
    if threads is None and parameters is not None and parameters < _SMALL:
        threads = 1
    if workers is None:
        workers = _workers(config, cores // (threads or 1), parameters)
    threads = threads or (max(1, cores // workers) if workers else torch.get_num_threads())
    return EngineConfig(workers, threads, config.engine.stacked)


def _workers(config: Config, most: int, parameters: int | None) -> int:
    """Return how many workers pay; none where there is nothing to do side by side."""
    if parameters is None or resolve_device(config.device).type != "cpu":
        return 0
    copies = 1 if config.lora is not None else 5  # weights; gradients, two moments, the KL term's reference
    room = int(0.8 * _memory()) // (_PROCESS_BYTES + 4 * copies * parameters)
    workers = min(most, room, clients_per_round(config) or most)
    return workers if workers > 1 else 0


@contextmanager
def open_engine(config: Config) -> Iterator[Engine]:
    """Start the engine that a decided `config.engine` describes, and end it afterwards.

    Raises:
        FgrpoError: the configuration cannot be used.
    """
    assert config.engine.workers is not None
    assert config.engine.threads is not None
    before = torch.get_num_threads()
    torch.set_num_threads(config.engine.threads)
    try:
        with hub_or_disk(config), _opened(config, config.engine.workers, config.engine.threads) as engine:
            yield engine
    finally:
        torch.set_num_threads(before)


@contextmanager
def _opened(config: Config, workers: int, threads: int) -> Iterator[Engine]:
    if workers:
        from fgrpo.engines.workers import Workers

        with Workers(config, workers, threads) as engine:
            yield engine
    elif config.engine.stacked:
        from fgrpo.engines.stacked import Stacked
        from fgrpo.engines.workplace import Workplace

        yield Stacked(Workplace.open(config))
    else:
        from fgrpo.engines.in_process import InProcess
        from fgrpo.engines.workplace import Workplace

        yield InProcess(Workplace.open(config))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int:
    """Return the bytes that this process and its workers may have."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # of a container
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(limits)


def _parameters(config: Config) -> int | None:
    """Return about how many parameters a model on this disk has; None for one that is not there or not readable."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(model_source(config))
    if not folder.is_dir():
        try:
            cached = try_to_load_from_cache(config.model, config.gguf_file or "config.json")
        except ValueError:  # no name that the hub could have
            return None
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    try:
        if config.gguf_file is not None:
            return 2 * (folder / config.gguf_file).stat().st_size  # about four bits each
        return sum(map(_numbers_in, folder.glob("*.safetensors"))) or None
    except (OSError, SafetensorError):
        return None


def _numbers_in(file: Path) -> int:
    with safe_open(file, "pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
