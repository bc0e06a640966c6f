"""The command line: `fgrpo train | resume | evaluate | report | compare | inspect | keys`."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgrpo.errors import FgrpoError

if TYPE_CHECKING:
    from fgrpo.config import Config
    from fgrpo.engines.base import Observer
    from fgrpo.run_folder import RunFolder


# Read by libraries when they are imported, which happens later; whoever sets one outside keeps their value.
_ENVIRONMENT = {
    "GOMP_SPINCOUNT": "0",  # threads that wait by spinning make two runs on the same cores 20 times slower than one
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # our own display speaks, and no library beside it
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, 1 for an error that a person can mend, 130 when interrupted."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    parser, arguments, overrides = _parse(argv)
    if overrides and not arguments.takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    sys.path.append(os.getcwd())  # a reward of the user's own lies beside the configuration
    try:
        arguments.command(arguments, overrides)
    except FgrpoError as error:
        print(f"fgrpo: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fgrpo: interrupted; whole rounds are kept, go on with `fgrpo resume RUN`", file=sys.stderr)
        return 130
    return 0


def _parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="fgrpo", description="Federated GRPO with adaptive aggregation.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any, target: str, about: str, overrides: bool = False) -> argparse.ArgumentParser:
        more = "Any key of the configuration can follow as an option, for example --train.lr 1e-4; see `fgrpo keys`."
        sub = commands.add_parser(name, help=about, description=about, epilog=more if overrides else None)
        if target:
            sub.add_argument(target.lower(), metavar=target, type=Path)
        sub.set_defaults(command=command, takes_overrides=overrides)
        return sub

    add("train", _train, "CONFIG", "start a run from a YAML configuration", overrides=True)
    add("resume", _resume, "RUN", "continue a run from its last whole round", overrides=True)
    evaluate = add("evaluate", _evaluate, "TARGET", "held-out accuracy of a run or of a configuration's model", True)
    evaluate.add_argument("--round", type=int, help="a round of the run whose state is kept (default: the last)")
    add("report", _report, "RUN", "write plots and an HTML page, and print the tables")
    compare = add("compare", _compare, "", "print how several runs differ: their configurations, and what they came to")
    compare.add_argument("runs", metavar="RUN", type=Path, nargs="+")
    compare.add_argument(
        "-o", "--output", metavar="FILE", type=Path, action="append", default=[], help="also write .csv, .json or .html"
    )
    add("inspect", _inspect, "PAYLOAD", "check a payload and print what it holds")
    add("keys", _keys, "", "list every key of the configuration")
    arguments, overrides = parser.parse_known_args(argv)
    return parser, arguments, overrides


def _train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.experiment import train
    from fgrpo.settings import read_config

    _finish(train(read_config(arguments.config, overrides), _observed))


def _resume(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.experiment import resume

    _finish(resume(arguments.run, overrides, _observed))


def _evaluate(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.experiment import evaluate
    from fgrpo.show.terminal import print_evaluations

    print_evaluations(evaluate(arguments.target, overrides, arguments.round))


def _report(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.run_folder import RunFolder

    _finish(RunFolder.open(arguments.run))


def _compare(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.run_folder import RunFolder
    from fgrpo.show.comparison import Compared
    from fgrpo.show.comparison_files import check_output, write_comparison
    from fgrpo.show.terminal import print_comparison

    for path in arguments.output:
        check_output(path)
    runs = [Compared.of(RunFolder.open(path)) for path in arguments.runs]
    for path in arguments.output:
        write_comparison(path, runs)
    print_comparison(runs)


def _inspect(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.errors import PayloadError
    from fgrpo.show.terminal import print_payload
    from fgrpo.wire.payload import unpack

    try:
        payload = arguments.payload.read_bytes()
    except OSError as error:
        raise PayloadError(f"{arguments.payload} cannot be read: {error.strerror}") from None
    print_payload(*unpack(payload), len(payload))


def _keys(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.settings import config_parser

    config_parser().print_help()


def _finish(folder: RunFolder) -> None:
    """Print the tables of a run, write its report, and say where it is."""
    from fgrpo.show.report import write_report
    from fgrpo.show.terminal import print_summary

    report = write_report(folder)
    print_summary(list(folder.records()))
    if (folder.path / "model").is_dir():
        print(f"model:  {folder.path / 'model'}")
    print(f"report: {report}")


@contextmanager
def _observed(config: Config, folder: RunFolder, clients: Sequence[str]) -> Iterator[Observer]:
    from fgrpo.participation import participants
    from fgrpo.show.progress import Observers, Progress
    from fgrpo.show.sinks import curve_writer
    from fgrpo.show.text import engine

    print(f"engine: {engine(config.engine)}")
    done = max(folder.rounds(), default=0)
    asked = len(participants(clients, config, done + 1))
    progress = Progress(config.rounds, clients, asked=asked, done=done)
    with curve_writer(config, folder) as curves, progress:
        yield Observers([progress, curves])


if __name__ == "__main__":
    sys.exit(main())
