"""What the row kernels and the LM head could be launched with, timed in turns: which is fastest?

    python benchmarks/gpu_sweep.py                     # 8192 rows of 151,936 bfloat16 logits
    python benchmarks/gpu_sweep.py --kinds loss --rounds 9

Each choice is first checked against float64 on a few rows. The winner of each kind is named at the end, with its gain
over the one that the table has, and belongs into `fgrpo_kernels/gpu/launch_table.py`; the others go.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fgrpo_kernels import grpo_loss, linear_grpo_loss, linear_token_logprobs, reference, token_logprobs
from fgrpo_kernels.bench.case import Run, WrongResultError, require_close
from fgrpo_kernels.bench.clock import DeviceClock, Turn
from fgrpo_kernels.bench.limits import copy_bandwidth
from fgrpo_kernels.bench.machine import header
from fgrpo_kernels.bench.memory import peak_bytes
from fgrpo_kernels.bench.results import Record, ResultFile, failed
from fgrpo_kernels.gpu.candidates import CANDIDATES, HEAD_ROWS
from fgrpo_kernels.gpu.launch_table import trying
from fgrpo_kernels.head.blocks import trying_rows

CHECKED_ROWS = 12
UPSTREAM = 0.25  # a gradient other than 1, as of a step in four micro-batches
Within = Callable[[], AbstractContextManager[None]]
Make = Callable[[int], tuple[Run, Run]]  # rows -> what is timed, and the same in float64


def terms(logp: Tensor) -> dict[str, Tensor]:
    """Of a policy that has moved a little, with both signs of the advantage.

    One row in twelve is clipped, and none is so close to that that the rounding of logits decides it.
    """
    row = torch.arange(len(logp), device="cuda")
    return {
        "advantages": torch.randn(len(logp), device="cuda").abs() * (1 - 2 * (row % 2)),
        "weights": torch.full_like(logp, 1 / len(logp)),
        "old_logp": logp.detach() + torch.where(row % 12 == 1, 0.7, 0.05),  # ratios of 0.5 and 0.95
    }


def logits_and_targets(rows: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    logits = torch.randn(rows, vocabulary, device="cuda", dtype=torch.bfloat16).mul_(3)
    return logits.requires_grad_(), torch.randint(vocabulary, (rows,), device="cuda")


def scan(vocabulary: int) -> Make:
    def make(rows: int) -> tuple[Run, Run]:
        logits, targets = logits_and_targets(rows, vocabulary)
        logits.requires_grad_(False)
        return lambda: token_logprobs(logits, targets), lambda: reference.token_logprobs(logits.double(), targets)

    return make


def write(vocabulary: int) -> Make:
    def make(rows: int) -> tuple[Run, Run]:
        logits, targets = logits_and_targets(rows, vocabulary)
        loss = token_logprobs(logits, targets).logp.sum()

        def exact() -> tuple[Tensor, ...]:
            leaf = logits.detach().double().requires_grad_()
            return torch.autograd.grad(reference.token_logprobs(leaf, targets).logp.sum(), leaf)

        return lambda: torch.autograd.grad(loss, logits, retain_graph=True), exact

    return make


def loss(vocabulary: int, *, factor: float = 1.0, in_weights: bool = True) -> Make:
    """Times a factor: in the weights, or of the loss."""

    def make(rows: int) -> tuple[Run, Run]:
        logits, targets = logits_and_targets(rows, vocabulary)
        given = terms(token_logprobs(logits, targets).logp)
        scaled = given | {"weights": factor * given["weights"]}

        def ours() -> tuple[Tensor, ...]:
            if in_weights:
                return torch.autograd.grad(grpo_loss(logits, targets, **scaled).loss, logits)
            return torch.autograd.grad(factor * grpo_loss(logits, targets, **given).loss, logits)

        def exact() -> tuple[Tensor, ...]:
            leaf = logits.detach().double().requires_grad_()
            return torch.autograd.grad(reference.grpo_loss(leaf, targets, **scaled).loss, leaf)

        return ours, exact

    return make


def head(vocabulary: int, hidden_size: int) -> Make:
    def make(rows: int) -> tuple[Run, Run]:
        hidden = torch.randn(rows, hidden_size, device="cuda").bfloat16().requires_grad_()
        weight = (hidden_size**-0.5 * torch.randn(vocabulary, hidden_size, device="cuda")).bfloat16().requires_grad_()
        targets = torch.randint(vocabulary, (rows,), device="cuda")
        given = terms(linear_token_logprobs(hidden, weight, targets).logp)

        def of(op: Any, leaves: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
            return torch.autograd.grad(op(*leaves, targets, **given).loss, leaves)

        def exact() -> tuple[Tensor, ...]:
            leaves = tuple(x.detach().double().requires_grad_() for x in (hidden, weight))
            return of(reference.linear_grpo_loss, leaves)  # type: ignore[arg-type]

        return lambda: of(linear_grpo_loss, (hidden, weight)), exact

    return make


def variants(vocabulary: int, hidden_size: int) -> dict[str, dict[str, tuple[Make, Within]]]:
    """By kind and name: what is run, and within what. The first of each kind is how things are."""
    makers = {"scan": scan(vocabulary), "write": write(vocabulary), "loss": loss(vocabulary)}
    found: dict[str, dict[str, tuple[Make, Within]]] = {
        kind: {name: (makers[kind], lambda k=kind, c=choice: trying(k, c)) for name, choice in choices.items()}
        for kind, choices in CANDIDATES.items()
    }
    found["divisor"] = {
        "in the weights": (loss(vocabulary, factor=UPSTREAM), nullcontext),
        "of the loss": (loss(vocabulary, factor=UPSTREAM, in_weights=False), nullcontext),
    }
    found["head"] = {
        f"{rows} rows a block": (head(vocabulary, hidden_size), lambda rows=rows: trying_rows(rows))
        for rows in HEAD_ROWS
    }
    return found


def prepare(make: Make, rows: int) -> tuple[Run, Run]:
    """The variants of a kind, and every run of this, get the same numbers."""
    torch.manual_seed(0)
    return make(rows)


def check(make: Make, within: Within) -> None:
    ours, exact = prepare(make, CHECKED_ROWS)
    with within():
        results = ours()
    for number, (result, expected) in enumerate(zip(results, exact(), strict=True)):
        require_close(f"result {number}", result.detach(), expected.detach(), 1e-2)


def measure(
    kind: str, tried: dict[str, tuple[Make, Within]], rows: int, rounds: int, pass_seconds: float
) -> Iterator[Record]:
    """The records of a kind: variants that pass their check, in turns."""
    runs: dict[str, Run] = {}
    prepared: dict[Make, Run] = {}
    for name, (make, within) in tried.items():
        try:
            check(make, within)
            if make not in prepared:
                prepared[make], _ = prepare(make, rows)
            runs[name] = once = inside(within, prepared[make])
            once()
        except Exception as error:  # a variant's own fault must not lose the others' figures
            runs.pop(name, None)
            reason = (
                f"wrong result: {error}" if isinstance(error, WrongResultError) else f"{type(error).__name__}: {error}"
            )
            yield failed(f"{kind}: {name}", reason, kind=kind)
    seconds = DeviceClock("cuda").turns([Turn(run) for run in runs.values()], rounds)
    for (name, run), taken in zip(runs.items(), seconds, strict=True):
        median = statistics.median(taken)
        figures = {"median_s": median, "low_s": min(taken), "high_s": max(taken), "seconds": taken}
        if kind in ("scan", "write", "loss", "divisor"):
            passes = 1 if kind == "scan" else 2
            figures["fraction_of_copy"] = passes * pass_seconds / median
        yield {
            "name": f"{kind}: {name}",
            "kind": kind,
            "choice": name,
            **figures,
            "peak_bytes": peak_bytes(run, "cuda"),
        }


def inside(within: Within, run: Run) -> Run:
    def in_it() -> Any:
        with within():
            return run()

    return in_it


def winner(records: list[Record]) -> str:
    """The fastest of a kind, next to the first."""
    timed = [record for record in records if "median_s" in record]
    if not timed:
        return "nothing was timed"
    best, first = min(timed, key=lambda record: record["median_s"]), timed[0]
    return f"{best['name']} takes {best['median_s'] / first['median_s']:.3f} of {first['choice']}'s time"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", type=lambda text: text.split(","), help="joined by commas; all of them")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    file = ResultFile("sweep", header("cuda"), settings=vars(options))
    bandwidth = copy_bandwidth("cuda")
    print(f"{file.content['header']['device']}: a copy moves {bandwidth / 1e9:.0f} GB/s")
    pass_seconds = 2 * options.rows * options.vocabulary / bandwidth  # over all logits
    wrong, winners = 0, []
    for kind, tried in variants(options.vocabulary, options.hidden).items():
        if options.kinds is not None and kind not in options.kinds:
            continue
        records = []
        for record in measure(kind, tried, options.rows, options.rounds, pass_seconds):
            file.add(record)
            records.append(record)
            wrong += "not_measured" in record
            took = f"{1e3 * record['median_s']:9.3f} ms" if "median_s" in record else record["not_measured"]
            print(f"{record['name']:70s} {took}", flush=True)
        winners.append(winner(records))
        torch.cuda.empty_cache()
    file.content["winners"] = winners
    file.write()
    print(*winners, f"written: {file.path}", sep="\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
