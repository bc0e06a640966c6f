"""Our loop against TRL with Flower's simulation and TRL with plain averaging: the same rounds, in turns.

    python benchmarks/bench_round.py                                                 # the quickstart, 3 repetitions
    python benchmarks/bench_round.py --config configs/smollm2.yaml --rounds 1 --repetitions 1
    python benchmarks/bench_round.py --clients 4,8,16,32,64 --rounds 3               # our loop, more clients
    python benchmarks/bench_round.py --render benchmarks/results/round_*.json > rounds.md

Any key of the configuration can follow as an option and then holds for every contender; `--ours="--engine.workers 2"`
holds for ours alone. The rivals need `trl>=1.16,<1.17` and `flwr[simulation]>=1.41,<1.43`; one that is missing is
named and left out. A contender runs in a process of its own for every repetition, and is watched from outside.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from process_tree import watch
from round_results import equal_work, headline, repetition, slope, summary, times_ours
from round_tables import render

Record = dict[str, Any]

ROOT = Path(__file__).parents[1]
CONTENDERS = {"fgrpo": [], "trl+flower": ["trl", "flwr", "ray"], "trl+plain": ["trl"]}  # and the packages they need
PACKAGES = ["torch", "transformers", "peft", "trl", "flwr", "ray"]
INTERVAL_S, TIMEOUT_S = 0.2, 2 * 3600.0
ENVIRONMENT = {
    "GOMP_SPINCOUNT": "0",  # threads that wait by spinning stall the others; good for every contender
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # not 15: whoever else is on the machine would go before
}


def main() -> int:
    options, overrides = _parser().parse_known_args()
    if options.render:
        print(render(options.render), end="")
        return 0
    path = scale(options, overrides) if options.clients else compare(options, overrides)
    print(render([path]))
    print(f"written: {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.yaml")
    parser.add_argument("--rounds", type=int, default=4, help="the first one is reported apart")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--contenders", type=_contenders, default=list(CONTENDERS), help="names, joined by commas")
    parser.add_argument(
        "--actors", type=int, default=len(os.sched_getaffinity(0)), help="Flower's actors; threads of plain averaging"
    )
    parser.add_argument(
        "--ours", type=str.split, default=[], metavar="OPTIONS", help="configuration keys for fgrpo alone"
    )
    parser.add_argument("--clients", type=_numbers, help="numbers of clients: measure only how our loop scales")
    parser.add_argument("--render", type=Path, nargs="+", metavar="JSON", help="print results as Markdown")
    return parser


def _contenders(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in CONTENDERS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(CONTENDERS)}")
    return names


def _numbers(text: str) -> list[int]:
    numbers = [int(number) for number in text.split(",")]
    if len(set(numbers)) < 2 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"a slope needs at least two different numbers of clients, got {text}")
    return numbers


def compare(options: argparse.Namespace, overrides: Sequence[str]) -> Path:
    """Play every contender in turns and write the figures; return the file."""
    from fgrpo_kernels.bench.machine import header
    from fgrpo_kernels.bench.results import failed, save

    head = header(packages=PACKAGES)
    why_not = {name: _missing(name) for name in options.contenders}
    played: dict[str, list[Record]] = {name: [] for name in options.contenders}
    for number in range(options.repetitions):
        turn = number % len(options.contenders)
        for name in options.contenders[turn:] + options.contenders[:turn]:
            if why_not[name] is None:
                _say(f"repetition {number + 1} of {options.repetitions}: {name}")
                why_not[name] = _play(name, options, overrides, options.config, played[name])
            if why_not[name] is not None and number == 0:
                _say(f"{name} is not measured: {why_not[name]}")
    results = [
        summary(name, played[name]) if reason is None else failed(name, reason) for name, reason in why_not.items()
    ]
    measured = {record["name"]: record for record in results if "not_measured" not in record}
    if ours := measured.pop("fgrpo", None):
        for rival in measured.values():
            rival["times_ours"] = times_ours(rival, ours)
        if measured and equal_work([ours, *measured.values()]):
            ours["headline"] = headline(options.config.stem, ours, list(measured.values()))
    return save(f"round_{options.config.stem}", head, results, settings=_settings(options, overrides))


def scale(options: argparse.Namespace, overrides: Sequence[str]) -> Path:
    """Play our loop with the configuration's clients repeated, and write what another client costs; return the file."""
    from fgrpo_kernels.bench.machine import header
    from fgrpo_kernels.bench.results import save

    head = header(packages=PACKAGES)
    # Accuracy is of no interest here, and the evaluation of many clients would take longer than their rounds.
    overrides = [*overrides, "--evaluation.prompts", "8"]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for number in options.clients:
            repeated = Path(folder) / f"{number}.yaml"
            repeated.write_text(_repeated(options.config, number))
            played: list[Record] = []
            for _ in range(options.repetitions):
                _say(f"fgrpo with {number} clients")
                if reason := _play("fgrpo", options, overrides, repeated, played):
                    sys.exit(f"bench_round: {number} clients: {reason}")
            results.append({"clients": number, **summary("fgrpo", played)})
    slopes = {
        "seconds": slope(options.clients, [r["round_s"]["median"] for r in results]),
        "bytes": slope(options.clients, [r["peak_bytes"] for r in results]),
    }
    settings = _settings(options, overrides)
    return save(f"round_{options.config.stem}-clients", head, results, settings=settings, slopes=slopes)


def _play(
    name: str, options: argparse.Namespace, overrides: Sequence[str], config: Path, played: list[Record]
) -> str | None:
    """Run a contender to its end in a process of its own; add its figures to `played`, or return why there are none."""
    keys = [*overrides, "--rounds", str(options.rounds), "--evaluation.every", "0"]
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "played.json", Path(folder) / "log"
        keys += options.ours if name == "fgrpo" else []
        command = [sys.executable, "-m", "rivals", name, str(out), str(config), str(options.actors), *keys]
        try:
            status, started, samples = watch(
                command, _environment(name, options.actors), log, interval=INTERVAL_S, timeout=TIMEOUT_S
            )
        except TimeoutError as error:
            return str(error)
        if status != 0 or not out.exists():
            lines = log.read_text(errors="replace").splitlines()
            print("\n".join(lines[-30:]), file=sys.stderr)
            return f"it ended with status {status}: {lines[-1] if lines else 'no output'}"
        played.append(repetition(json.loads(out.read_text()), started, samples))
    _say(f"{name}: {' '.join(f'{seconds:.2f}' for seconds in played[-1]['round_s'])} s")
    return None


def _environment(name: str, threads: int) -> dict[str, str]:
    environment = {**os.environ, **ENVIRONMENT}
    paths = [str(ROOT / "benchmarks"), str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    environment.pop("OMP_NUM_THREADS", None)  # ours chooses for itself
    if name != "fgrpo":
        environment["OMP_NUM_THREADS"] = "1" if name == "trl+flower" else str(threads)
    return environment


def _repeated(config: Path, number: int) -> str:
    """A configuration with so many clients, each like one of the file's but with prompts of its own."""
    from fgrpo.settings import read_config, to_yaml

    given = read_config(config)
    kinds = list(given.clients.items())
    if not kinds:
        sys.exit(f"bench_round: {config} has no clients to repeat")
    clients = {f"{kinds[i % len(kinds)][0]}-{i}": kinds[i % len(kinds)][1] for i in range(number)}
    return to_yaml(dataclasses.replace(given, clients=clients))


def _missing(name: str) -> str | None:
    missing = [package for package in CONTENDERS[name] if importlib.util.find_spec(package) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def _settings(options: argparse.Namespace, overrides: Sequence[str]) -> Record:
    return {
        "config": options.config.stem,
        "rounds": options.rounds,
        "repetitions": options.repetitions,
        "actors": options.actors,
        "overrides": list(overrides),
        "ours": options.ours,
        "interval_s": INTERVAL_S,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it too leaves no process behind
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("bench_round: interrupted; nothing is written")
