"""The command line; `fgrpo --help` lists its commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgrpo import __version__
from fgrpo.errors import FgrpoError, Interrupted
from fgrpo.nearest import did_you_mean
from fgrpo.quiet import be_quiet
from fgrpo.show.loading import Loading

if TYPE_CHECKING:
    from fgrpo.config import Config
    from fgrpo.engines.base import Observer
    from fgrpo.run_folder import RunFolder
    from fgrpo.study.spec import Study


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, 1 for an error that a person can mend, 130 when interrupted."""
    be_quiet()
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
    compare = add("compare", _compare, "", "print how several runs differ: their configurations, and what they came to")
    compare.add_argument("runs", metavar="RUN", type=Path, nargs="+")
    compare.add_argument(
        "-o", "--output", metavar="FILE", type=Path, action="append", default=[], help="also write .csv, .json or .html"
    )
    study = add("study", _study, "STUDY", "play arms x scenarios x seeds, and compare them; see docs/studies.md")
    only = "play this one only; may be said several times"
    study.add_argument("--scenario", metavar="NAME", action="append", default=[], help=only)
    only = "play this one with the reference arm only; may be said several times"
    study.add_argument("--arm", metavar="NAME", action="append", default=[], help=only)
    study.add_argument("--reference", metavar="NAME", help="the arm to compare with (default: the study's)")
    sweep = add("sweep", _sweep, "CONFIG", "play a configuration with several values, separated by commas", True)
    sweep.add_argument("--baselines", default="", help="centralised, local, or both separated by a comma")
    for command in (study, sweep):
        command.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one for each core)")
        command.add_argument("--output-dir", "--output_dir", type=Path, metavar="DIR", help="the study's folder")
        command.add_argument("--report", action="store_true", help="play nothing, write what is finished")
    add("rules", _rules, "", "list the rules by which clients are weighed, gains, step sizes and robust merges")
    add("inspect", _inspect, "PAYLOAD", "check a payload and print what it holds")
    keys = add("keys", _keys, "", "list every key of the configuration, or those whose name or help has a word")
    keys.add_argument("words", metavar="WORD", nargs="*")
    flower = add("flower", _flower, "", "many machines: `fgrpo flower init DIR` writes an app for Flower's `flwr run`")
    flower.add_argument("action", choices=["init"])
    flower.add_argument("folder", metavar="DIR", type=Path)
    words = sys.argv[1:] if argv is None else list(argv)
    if words and not words[0].startswith("-") and words[0] not in commands.choices:
        parser.error(f"there is no command '{words[0]}'{did_you_mean(words[0], commands.choices)} (see fgrpo --help)")
    arguments, overrides = parser.parse_known_args(words)
    return parser, arguments, overrides


def _train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.hub import check_paths, hub_or_disk
    from fgrpo.importing import check_report_to, find_rewards
    from fgrpo.paths import check_free
    from fgrpo.settings import read_config

    config = read_config(arguments.config, overrides)
    if config.output_dir:
        check_free(config.output_dir)
    check_paths(config)
    check_report_to(config)
    with Loading(f"PyTorch and model {config.model}") as loading, hub_or_disk(config):
        find_rewards(config)  # before what takes seconds to import
        from fgrpo.experiment import train

        folder = train(config, loading.until(_observed))
    _finish(folder)


def _resume(arguments: argparse.Namespace, overrides: list[str]) -> None:
    with Loading(arguments.run) as loading:
        from fgrpo.experiment import is_finished, resume

        if is_finished(arguments.run, overrides):
            print(f"{arguments.run} has all its rounds; go further with --rounds, see `fgrpo report {arguments.run}`")
            return
        folder = resume(arguments.run, overrides, loading.until(_observed))
    _finish(folder)


def _evaluate(arguments: argparse.Namespace, overrides: list[str]) -> None:
    with Loading(arguments.target):
        from fgrpo.experiment import evaluate
        from fgrpo.show.terminal import print_evaluations

        evaluations = evaluate(arguments.target, overrides, arguments.round)
    print_evaluations(evaluations)


def _report(arguments: argparse.Namespace, overrides: list[str]) -> None:
    with Loading(arguments.run):
        from fgrpo.run_folder import RunFolder

        folder = RunFolder.open(arguments.run)
    _finish(folder)


def _compare(arguments: argparse.Namespace, overrides: list[str]) -> None:
    with Loading(", ".join(map(str, arguments.runs))):
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
    for path in arguments.output:
        print(f"written: {path}")


def _study(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.study.file import read_study

    study = read_study(arguments.study).part(arguments.scenario, arguments.arm, arguments.reference)
    _play_study(study, arguments)


def _sweep(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.study.sweep import sweep

    _play_study(sweep(arguments.config, overrides, arguments.baselines), arguments)


def _play_study(study: Study, arguments: argparse.Namespace) -> None:
    from fgrpo.show.terminal import print_tables
    from fgrpo.study.run import run_study

    study = replace(study, output_dir=arguments.output_dir or study.output_dir)
    try:
        page, found = run_study(study, arguments.jobs, play=not arguments.report)
    except KeyboardInterrupt:
        print("fgrpo: interrupted; what is finished is kept, go on with the same command", file=sys.stderr)
        raise SystemExit(130) from None
    print_tables(found)
    print(f"report: {page}")


def _rules(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.server.catalogue import catalogue
    from fgrpo.show.tables import TextTable
    from fgrpo.show.terminal import print_tables

    columns = ("value", "what it does", "source")
    print_tables(TextTable(key, columns, tuple(rows), numbers_from=3) for key, rows in catalogue().items())
    print("* the default")


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


def _flower(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from fgrpo.engines.flower.init import init

    for path in init(arguments.folder):
        print(path)


def _finish(folder: RunFolder) -> None:
    """Print the tables of a run, write its report, and say where it is."""
    print("writing the report ...", flush=True)
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
    from fgrpo.server.unread import unread
    from fgrpo.show.progress import Observers, Progress
    from fgrpo.show.sinks import curve_writer
    from fgrpo.show.text import engine

    print(f"engine: {engine(config.engine)}")
    for line in unread(config):
        print(f"note: {line}")
    done = max(folder.rounds(), default=0)
    for from_round, changes in folder.changes():
        if from_round == done + 1:
            print(f"from round {from_round} on: {in_words(changes)}")
    asked = len(participants(clients, config, done + 1))
    progress = Progress(config.rounds, clients, asked=asked, done=done)
    with curve_writer(config, folder) as curves, progress:
        yield Observers([progress, curves])


if __name__ == "__main__":
    sys.exit(main())
