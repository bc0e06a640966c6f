"""The command line: `python -m fgrpo_kernels.bench --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fgrpo_kernels import _C
from fgrpo_kernels.bench.case import Options
from fgrpo_kernels.bench.compare import compare
from fgrpo_kernels.bench.ops import OPS
from fgrpo_kernels.bench.packages import INSIDE, PACKAGES
from fgrpo_kernels.bench.report import Site, write
from fgrpo_kernels.bench.results import load
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
    listed.set_defaults(run=lambda chosen: _print(listing()))
    reported = commands.add_parser("report", help="write the repository's pages and plots, or print a page")
    reported.add_argument("results", type=Path, nargs="*", help="files or folders to print a page of")
    reported.set_defaults(run=lambda chosen: _report(chosen.results))
    compared = commands.add_parser("compare", help="whether ours became faster or slower, or nobody can tell")
    for name in ("a", "b"):
        compared.add_argument(name, type=Path, metavar=name.upper(), help="a file of results, or a folder")
    compared.set_defaults(run=lambda chosen: _print(compare(load([chosen.a]), load([chosen.b]))))
    return parser


def _add_options(parser: argparse.ArgumentParser, op: str) -> None:
    default = Options()
    parser.add_argument("--device", help="cpu, cuda, xpu; the GPU where there is one and the op runs there")
    parser.add_argument("--model", choices=MODELS, help="whose hidden size and vocabulary")
    parser.add_argument("--dtype", choices=DTYPES, help="of the logits or the head")
    parser.add_argument("--rows", type=int, help="token rows")
    parser.add_argument("--parameters", type=int, help="elements of a delta")
    parser.add_argument("--threads", type=int, default=default.threads, help="of the CPU")
    parser.add_argument("--simd", choices=_C.simd_levels(), help="what our C++ is held to, the others not; the widest")
    parser.add_argument("--against", type=_names, metavar="NAMES", help="contenders, joined by commas; all of them")
    parser.add_argument("--only", metavar="TEXT", help="cases whose name contains it")
    parser.add_argument("--seconds", type=float, default=default.seconds, help="a contender's time, and ours beside it")
    parser.add_argument("--rounds", type=int, help="turns of each contender, whatever they take")
    parser.set_defaults(run=lambda chosen: _bench(parser, op, chosen))


def _bench(parser: argparse.ArgumentParser, op: str, chosen: argparse.Namespace) -> int:
    for name in ("rows", "parameters", "threads", "rounds"):
        if (value := getattr(chosen, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if unknown := [name for name in chosen.against or () if name not in (*INSIDE, *PACKAGES)]:
        parser.error(f"unknown contender: {unknown[0]}; there are {', '.join((*INSIDE, *PACKAGES))}")
    named = ("model", "rows", "parameters", "threads", "simd", "against", "only")
    values = {name: getattr(chosen, name) for name in named}
    options = Options(
        **values,
        dtype=DTYPES[chosen.dtype] if chosen.dtype else None,
        seconds=chosen.seconds,
        rounds=chosen.rounds,
    )
    return bench(OPS if op == "all" else (op,), options, chosen.device)


def _report(results: Sequence[Path]) -> int:
    if results:
        return _print(Site(Path.cwd(), load(results)).whole_page(Path.cwd() / "benchmarks.md"))
    changed = write(Path.cwd())
    return _print("\n".join(f"written: {path}" for path in changed) or "every page is up to date")


def _print(text: str) -> int:
    print(text)
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("fgrpo_kernels.bench: interrupted; what was measured is on disk")
    except (ValueError, OSError) as error:
        sys.exit(f"fgrpo_kernels.bench: {error}")
