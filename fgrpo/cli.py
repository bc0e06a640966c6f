"""The command line: `fgrpo new | train | resume | evaluate | report | compare | inspect | keys`."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgrpo import __version__
from fgrpo.errors import FgrpoError, Interrupted

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
    try:
        arguments.command(arguments, overrides)
    except FgrpoError as error:
        print(f"fgrpo: error: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"fgrpo: interrupted; whole rounds are kept, go on with: fgrpo resume {stop.run}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("fgrpo: interrupted", file=sys.stderr)
        return 130
    return 0


def _parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="fgrpo", description="Federated GRPO with adaptive aggregation.", epilog="A first project: fgrpo new DIR"
    )
    parser.add_argument("--version", action="version", version=f"fgrpo {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any, target: str, about: str, overrides: bool = False) -> argparse.ArgumentParser:
        more = "Any key of the configuration can follow as an option, for example --train.lr 1e-4; see `fgrpo keys`."
        sub = commands.add_parser(name, help=about, description=about, epilog=more if overrides else None)
        if target:
            sub.add_argument(target.lower(), metavar=target, type=Path)
        sub.set_defaults(command=command, takes_overrides=overrides)
        return sub

    add("new", _new, "DIR", "write a commented configuration with sample data and a reward function, to start from")
    add("train", _train, "CONFIG", "start a run from a YAML configuration", overrides=True)
    add("resume", _resume, "RUN", "continue a run from its last whole round", overrides=True)
    evaluate = add("evaluate", _evaluate, "TARGET", "held-out accuracy of a run or of a configuration's model", True)
    evaluate.add_argument("--round", type=int, help="a round of the run whose state is kept (default: the last)")
    add("report", _report, "RUN", "write plots and an HTML page, and print the tables")
    compare = add("compare", _compare, "", "print the held-out accuracy of several runs side by side")
    compare.add_argument("runs", metavar="RUN", type=Path, nargs="+")
    add("inspect", _inspect, "PAYLOAD", "check a payload and print what it holds")
    keys = add("keys", _keys, "", "list every key of the configuration, or those whose name or help has a word")
    keys.add_argument("words", metavar="WORD", nargs="*")
    arguments, overrides = parser.parse_known_args(argv)
    return parser, arguments, overrides


def _train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.hub import hub_or_disk
    from fgrpo.settings import read_config

    config = read_config(arguments.config, overrides)
    _say_loading(f"model {config.model}")
    with hub_or_disk(config):  # before what takes seconds to import
        from fgrpo.experiment import train

        _finish(train(config, _observed))


def _resume(arguments: argparse.Namespace, overrides: list[str]) -> None:
    _say_loading(arguments.run)
    from fgrpo.experiment import resume

    _finish(resume(arguments.run, overrides, _observed))


def _evaluate(arguments: argparse.Namespace, overrides: list[str]) -> None:
    _say_loading(arguments.target)
    from fgrpo.experiment import evaluate
    from fgrpo.show.terminal import print_evaluations

    print_evaluations(evaluate(arguments.target, overrides, arguments.round))


def _report(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.run_folder import RunFolder

    _finish(RunFolder.open(arguments.run))


def _compare(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.run_folder import RunFolder
    from fgrpo.show.terminal import print_comparison

    print_comparison({str(path): list(RunFolder.open(path).records()) for path in arguments.runs})


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
    from fgrpo.keys import print_keys

    print_keys(arguments.words)


def _new(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.new import write_project

    print(write_project(arguments.dir))


def _say_loading(what: object) -> None:
    print(f"loading {what} ...", flush=True)


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
    from fgrpo.changes import in_words
    from fgrpo.participation import participants
    from fgrpo.show.progress import Observers, Progress
    from fgrpo.show.tensorboard import TensorBoardWriter
    from fgrpo.show.text import engine

    print(f"engine: {engine(config.engine)}")
    done = max(folder.rounds(), default=0)
    for from_round, changes in folder.changes():
        if from_round == done + 1:
            print(f"from round {from_round} on: {in_words(changes)}")
    asked = len(participants(clients, config, done + 1))
    with Progress(config.rounds, clients, asked=asked, done=done) as progress, TensorBoardWriter(folder) as curves:
        yield Observers([progress, curves])


if __name__ == "__main__":
    sys.exit(main())
