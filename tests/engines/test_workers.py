"""Clients in worker processes: the same bits as in this one, and nobody's death but its own."""

import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fgrpo.client.owners import Owners
from fgrpo.client.policy import Policy
from fgrpo.config import AggregationConfig, ClientConfig, EvaluationConfig, LoraConfig, TaskConfig
from fgrpo.engines.in_process import InProcess
from fgrpo.engines.shared import SharedMemory, frozen_bytes
from fgrpo.engines.workers import Workers
from fgrpo.engines.workplace import Workplace
from fgrpo.errors import ConfigError, RunError
from fgrpo.federation import play_round
from fgrpo.records import GLOBAL, Failure, ServerState
from fgrpo.residuals import Residuals
from fgrpo.wire.parameters import fingerprint
from fgrpo.wire.payload import Header, pack
from fgrpo_kernels.codec import encode

HONEST = ["sums", "gcd"]


def ends_its_process(completion, answer):
    os.kill(os.getpid(), signal.SIGKILL)


def exits(completion, answer):
    sys.exit("I have had enough")


def client(reward):
    return ClientConfig([TaskConfig(reasoning_gym="gcd", reward=f"{__name__}:{reward.__name__}")])


class Watcher:
    def __init__(self):
        self.stages = []

    def stage(self, who, stage):
        self.stages.append((who, stage))

    def record(self, record):
        raise AssertionError("an engine measures nothing")


@pytest.fixture(scope="module")
def config(small_config):
    troubled = {"dies": client(ends_its_process), "exits": client(exits)}
    gcd = small_config.clients["gcd"].tasks
    return replace(
        small_config,
        lora=LoraConfig(rank=2),
        aggregation=AggregationConfig(gain="server", gain_prompts=4, gain_tasks=gcd),
        clients={**small_config.clients, **troubled},
        evaluation=EvaluationConfig(prompts=4),
    )


@pytest.fixture(scope="module")
def workers(config):
    threads = torch.get_num_threads()
    with Workers(config, 2, threads) as workers:
        yield workers


@pytest.fixture(scope="module")
def in_process(config):
    return InProcess(Workplace(config, Owners(config), Policy.load(config)))


@pytest.fixture
def start(in_process, tmp_path):
    generator = torch.Generator().manual_seed(1)
    params_P = 0.01 * torch.randn(in_process.manifest.size, generator=generator)
    return replace(ServerState.initial(params_P), residuals=Residuals(folder=tmp_path / "residuals"))


def played(engine, config, state, clients):
    return play_round(state, only(engine, clients), config, Watcher())


def only(engine, clients):
    """The same engine with some of its clients."""

    class Part:
        manifest, train, downlink_bytes = engine.manifest, engine.train, engine.downlink_bytes
        try_out = engine.try_out

    Part.clients = clients
    return Part()


def test_both_find_the_same_in_the_configuration(workers, in_process):
    assert list(workers.clients) == list(in_process.clients) == [*HONEST, "dies", "exits"]
    assert workers.describe() == in_process.describe()
    assert workers.manifest == in_process.manifest
    assert torch.equal(workers.initial_parameters(), in_process.initial_parameters())


def test_rounds_have_the_same_bits_wherever_each_is_played(workers, in_process, config, start):
    ends = []
    for engines in ((in_process, in_process), (workers, in_process), (in_process, workers)):
        state, reports = start, []
        for engine in engines:
            state, _, accepted = played(engine, config, state, HONEST)
            reports += [replace(reply.report, seconds={}) for reply in accepted]
        ends.append((state, reports))
    (expected, expected_reports), *others = ends
    assert expected.residuals.keys() == set(HONEST)
    for state, reports in others:
        assert torch.equal(state.params_P, expected.params_P)
        assert all(torch.equal(state.residuals[c], expected.residuals[c]) for c in HONEST)
        assert state.history == expected.history
        assert reports == expected_reports


def test_evaluations_are_the_same_and_in_order(workers, in_process, start):
    *evaluations, dead, exited = workers.evaluate(start)
    one_by_one = in_process.evaluate(start)
    assert evaluations == [next(one_by_one), next(one_by_one)]
    assert [evaluation.client for evaluation in evaluations] == HONEST
    assert (dead.client, exited.client) == ("dies", "exits")
    assert "killed (SIGKILL)" in dead.reason


def test_replies_are_tried_out_to_the_same_scores(workers, in_process, start):
    header = Header("sums", 1, in_process.manifest.hash, fingerprint(start.params_P))
    payloads = {GLOBAL: None}
    for name, size in (("sums", 0.1), ("gcd", 0.3)):
        payloads[name] = pack(encode(size * torch.ones(in_process.manifest.size), codec="int4"), header)
    trials = workers.try_out(start, payloads)
    assert trials == list(in_process.try_out(start, payloads))
    assert [trial.client for trial in trials] == list(payloads)
    assert len({trial.score for trial in trials}) > 1


def test_whoever_takes_the_worker_along_is_quarantined_and_the_round_goes_on(workers, in_process, config, start):
    observer = Watcher()
    before = {worker.process.pid for worker in workers._crew._workers}
    replies, _ = workers.train(start, workers.clients, observer)
    failures = {reply.client: reply.reason for reply in replies if isinstance(reply, Failure)}
    assert failures.keys() == {"dies", "exits"}
    assert failures["dies"] == "its worker process was killed (SIGKILL); did memory run out?"
    assert "I have had enough" in failures["exits"]
    after = {worker.process.pid for worker in workers._crew._workers}
    assert len(after) == 2
    assert len(after & before) == 1
    steps = ["rollout", "reward", "train"] * config.train.local_steps
    assert [stage for who, stage in observer.stages if who == "sums"] == [*steps, "encode", "done"]
    assert {who for who, stage in observer.stages if stage == "done"} == set(workers.clients)
    again, _, _ = played(workers, config, start, HONEST)
    alone, _, _ = played(in_process, config, start, HONEST)
    assert torch.equal(again.params_P, alone.params_P)


def test_a_worker_that_dies_before_it_is_ready_leaves_its_work_to_the_others(config, start):
    with Workers(config, 2, 1) as workers:
        crew = workers._crew
        late = [worker for worker in crew._workers if not worker.is_open] or crew._workers[1:]
        os.kill(late[0].process.pid, signal.SIGKILL)
        assert len(workers.train(start, HONEST, Watcher())[0]) == 2
        assert late[0] not in crew._workers
        for worker in crew._workers:
            worker.is_open = False  # as if they had never been ready
            os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(RunError, match=r"a worker process was killed \(SIGKILL\).* while it loaded the model"):
            workers.evaluate(start)


def test_a_configuration_that_cannot_be_used_says_so_as_in_process(config):
    with pytest.raises(ConfigError, match="'/nowhere' cannot be loaded"):
        Workers(replace(config, model="/nowhere"), 2, 1)


def test_frozen_parameters_are_one_memory(config):
    models = [Policy.load(config).model for _ in range(2)]
    before = [parameter.clone() for parameter in models[0].parameters()]
    memory = SharedMemory.new(frozen_bytes(models[0]))
    for model in models:
        memory.hold_frozen(model)
    start = memory.bytes.data_ptr()
    for old, *new in zip(before, *(model.parameters() for model in models), strict=True):
        assert all(torch.equal(old, parameter) for parameter in new)
        assert len({parameter.data_ptr() for parameter in new}) == (2 if new[0].requires_grad else 1)
        assert all(start <= p.data_ptr() < start + len(memory.bytes) for p in new if not p.requires_grad)
    memory.close()


CONFIG = """
clients:
  sums: {tasks: [{reasoning_gym: chain_sum}]}
  gcd: {tasks: [{reasoning_gym: gcd}]}
rollout: {prompts_per_step: 4, group_size: 4, max_new_tokens: 6}
train: {local_steps: 500}
evaluation: {prompts: 1}
engine: {workers: 2, threads: 1}
"""


def marked(mark):
    """Return the processes that were started with a variable in their environment."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in entry.read_bytes():
                found.add(int(entry.parent.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_nothing_is_left_of_a_run_that_ends_in_the_middle(tmp_path, end):
    (tmp_path / "config.yaml").write_text(CONFIG)
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "fgrpo.cli", "train", str(tmp_path / "config.yaml"), "--output-dir"]
    with subprocess.Popen(
        [*command, str(tmp_path / "run")],
        env={**os.environ, "FGRPO_TEST": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        assert run.stdout.readline() == "loading PyTorch and model tiny ...\n"
        while (line := run.stdout.readline()) and not line.startswith("engine"):
            assert line.strip().endswith(" s"), "nothing else is said while it loads"
        assert line == "engine: 2 workers x 1 thread\n"
        assert run.stdout.readline().startswith("before training")  # the clients are at work now, for minutes
        assert len(marked(mark)) >= 4, "the run, the server that forks, and two workers"
        (os.killpg if end == signal.SIGINT else os.kill)(run.pid, end)  # Ctrl-C reaches the whole group
        _, errors = run.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not marked(mark)
    complaints = errors.splitlines()
    if end == signal.SIGINT:
        resume = f"fgrpo resume {tmp_path / 'run'}"
        assert complaints == [f"fgrpo: interrupted; whole rounds are kept, go on with: {resume}"]
        assert run.returncode == 130
    else:
        assert complaints == []
