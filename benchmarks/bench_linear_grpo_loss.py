"""The LM head fused with the loss, forward and backward, against plain PyTorch, TRL's head and Liger's chunked loss.

    python -m pytest benchmarks/bench_linear_grpo_loss.py     # on a CPU: SmolLM2's head
    python benchmarks/bench_linear_grpo_loss.py               # on a GPU: heads of 152k tokens, and three products alone

All contenders take the same batch in one run. One that is not installed is skipped, and one whose gradients are wrong
is not timed.
"""

from __future__ import annotations

import ctypes
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from common import Record, attempt, measure, write
from head_contenders import Batch, Step, check, eager_step, fgrpo_step, gradients_of, liger_step, make_batch, trl_step

CPU_SHAPE = (16, 128, 576, 49_152)  # sequences, tokens, hidden size, vocabulary: SmolLM2's head
PADDED, DEGENERATE = 0.5, 1 / 3
ROUNDS = int(os.environ.get("ROUNDS", 5))
THREADS = int(os.environ.get("THREADS", 2))

CPU_CONTENDERS: dict[str, Callable[[Batch], Step]] = {
    "fgrpo": fgrpo_step,
    "fgrpo, sequence level": lambda batch: fgrpo_step(batch, "sequence"),
    "eager": eager_step,
    "eager, logging the entropy": lambda batch: eager_step(batch, logs_entropy=True),
    "TRL": lambda batch: trl_step(batch, compact=False),
    "TRL, rows of completions only": trl_step,
    "Liger": liger_step,
}


@pytest.fixture(scope="module")
def batch() -> Batch:
    torch.set_num_threads(THREADS)
    return make_batch(CPU_SHAPE, padded=PADDED, degenerate=DEGENERATE)


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, batch: Batch) -> Iterator[dict[str, tuple[float, float, float | None]]]:
    """By contender: median seconds, median ratio to fgrpo's seconds just before, and peak extra bytes. Printed last."""
    results: dict[str, tuple[float, float, float | None]] = {}
    yield results
    informative = int((batch.mask & (batch.advantages != 0)[:, None]).sum())
    peak = results["fgrpo"][2] if "fgrpo" in results else None
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(
            f"\n{list(CPU_SHAPE)}, {int(batch.mask.sum())} tokens, {informative} of them informative, {THREADS} threads"
        )
        for name, (seconds, ratio, other_peak) in results.items():
            line = f"  {name:32s} {seconds:7.3f} s, {ratio:5.2f} of fgrpo's"
            if other_peak is not None and peak is not None:
                line += f"; peak memory beyond the inputs {other_peak / 2**20:6.0f} MiB, {other_peak / peak:5.2f}"
            print(line)


@pytest.mark.parametrize("name", CPU_CONTENDERS)
def test_head_and_loss(name: str, benchmark: Any, batch: Batch, results: dict[str, Any]) -> None:
    make = CPU_CONTENDERS[name]
    try:
        step = make(batch)
    except ImportError as error:
        pytest.skip(f"not installed: {error}")
    if name != "fgrpo, sequence level":  # another loss than `check` has
        check(make, "cpu", torch.float32, 1e-4)
        step = make(batch)
    run, ours = gradients_of(step, batch), gradients_of(fgrpo_step(batch), batch)
    run()
    peak = peak_resident_bytes(run)
    before: list[float] = []

    def time_ours() -> None:  # in turns: a machine's speed changes in minutes, and with what runs beside
        start = time.perf_counter()
        ours()
        before.append(time.perf_counter() - start)

    benchmark.pedantic(run, setup=time_ours, rounds=ROUNDS)
    stats = benchmark.stats.stats
    ratio = statistics.median(theirs / mine for theirs, mine in zip(stats.data, before, strict=True))
    results[name] = (stats.median, ratio, peak)
    benchmark.extra_info |= {"peak_bytes": peak, "ratio": ratio}


def peak_resident_bytes(run: Callable[[], Any]) -> int | None:
    """The most memory that `run` holds at once beyond what is there before it; None where the kernel cannot say."""

    def kibibytes(field: str) -> int:
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None, "every Linux has it"
        return int(found.group(1))

    ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed, but not given back, hides what is taken now
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except OSError:
        return None
    before = kibibytes("VmRSS")
    result = run()  # what it returns counts
    peak = kibibytes("VmHWM")
    del result
    return (peak - before) * 1024


def products_alone(batch: Batch, *, frozen: bool) -> Callable[[], None]:
    """The products that a head needs, one after the other over all rows: the logits, dH, and dW unless frozen."""
    hidden, weight = batch.hidden.flatten(0, 1), batch.weight
    logits = torch.empty(len(hidden), len(weight), dtype=hidden.dtype, device=hidden.device)

    def run() -> None:
        torch.mm(hidden, weight.t(), out=logits)
        torch.mm(logits, weight)
        if not frozen:
            torch.mm(logits.t(), hidden)

    return run


def bench_gpu(hidden_size: int) -> list[Record]:
    shape = (8, 1024, hidden_size, 151_936)
    batch = make_batch(shape, device="cuda", dtype=torch.bfloat16)
    context = {"shape": list(shape), "logits_bytes": 2 * shape[0] * shape[1] * shape[3]}
    records: list[Record] = []
    for frozen in (False, True):
        head = f"H {hidden_size}{', frozen head' if frozen else ''}"
        name = f"products alone: {head}"
        records.append(attempt(name, lambda n=name, f=frozen: measure(n, products_alone(batch, frozen=f), **context)))
        torch.cuda.empty_cache()
        makers: dict[str, Callable[[Batch], Step]] = {"fgrpo": fgrpo_step, "eager": eager_step, "TRL": trl_step}
        if not frozen:
            makers |= {"fgrpo, sequence level": lambda batch: fgrpo_step(batch, "sequence"), "Liger": liger_step}
        for contender, make in makers.items():

            def timed(name: str, make: Callable[[Batch], Step] = make, frozen: bool = frozen) -> Record:
                if "sequence" not in name:
                    check(make, "cuda", torch.bfloat16, 2e-2)
                return measure(name, gradients_of(make(batch), batch, frozen=frozen), **context)

            name = f"{contender}: {head}"
            records.append(attempt(name, lambda n=name, t=timed: t(n), **context))
            torch.cuda.empty_cache()
    return records


if __name__ == "__main__":
    print(write("linear_grpo_loss", bench_gpu(4096) + bench_gpu(896)))
