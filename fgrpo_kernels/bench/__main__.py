"""The command line: `python -m fgrpo_kernels.bench --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from fgrpo_kernels.bench.case import NotHereError, Options
from fgrpo_kernels.bench.ops import OPS
from fgrpo_kernels.bench.session import bench, listing
from fgrpo_kernels.bench.shapes import MODELS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fgrpo_kernels.bench", description="Benchmarks of every op against what else there is."
    )
    commands = parser.add_subparsers(required=True, metavar="OP or COMMAND")
    for op in (*OPS, "all"):
        about = "every op, on the CPU and on a GPU where there is one" if op == "all" else f"measure {op}"
        _add_options(commands.add_parser(op, help=about), op)
    listed = commands.add_parser("list", help="ops, their cases and contenders, and which of them are here")
    listed.set_defaults(run=lambda chosen: print(listing()) or 0)
    return parser


def _add_options(parser: argparse.ArgumentParser, op: str) -> None:
    default = Options()
    parser.add_argument("--device", help="cpu, cuda, xpu; the GPU where there is one and the op runs there")
    parser.add_argument("--model", choices=MODELS, help="whose hidden size and vocabulary")
    parser.add_argument("--dtype", choices=DTYPES, help="of the logits or the head")
    parser.add_argument("--rows", type=int, help="token rows")
    parser.add_argument("--parameters", type=int, help="elements of a delta")
    parser.add_argument("--threads", type=int, default=default.threads, help="of the CPU")
    parser.add_argument("--against", type=_names, metavar="NAMES", help="contenders, joined by commas; all of them")
    parser.add_argument("--only", metavar="TEXT", help="cases whose name contains it")
    parser.add_argument("--seconds", type=float, default=default.seconds, help="a contender's time, and ours beside it")
    parser.add_argument("--rounds", type=int, help="turns of each contender, whatever they take")
    parser.set_defaults(run=lambda chosen: _bench(parser, op, chosen))


def _bench(parser: argparse.ArgumentParser, op: str, chosen: argparse.Namespace) -> int:
    for name in ("rows", "parameters", "threads", "rounds"):
        if (value := getattr(chosen, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    values = {name: getattr(chosen, name) for name in ("model", "rows", "parameters", "threads", "against", "only")}
    options = Options(
        **values,
        dtype=DTYPES[chosen.dtype] if chosen.dtype else None,
        seconds=chosen.seconds,
        rounds=chosen.rounds,
    )
    try:
        return bench(OPS if op == "all" else (op,), options, chosen.device)
    except NotHereError as error:
        parser.error(str(error))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("fgrpo_kernels.bench: interrupted; what was measured is on disk")
