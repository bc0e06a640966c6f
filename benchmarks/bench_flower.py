"""Clients on Flower, ours against Flower's own FedAvg in float32: the same model, clients and training, side by side.

    python benchmarks/bench_flower.py                       # bytes each way and seconds a round with 3 nodes, in turns
    python benchmarks/bench_flower.py --nodes 3,16,64       # and what is not training, with more of them
    python benchmarks/bench_flower.py --render benchmarks/results/flower_*.json

Both play in Flower's simulation, one actor of one thread for each core, in processes of their own, one after another.
Overhead is a round's seconds less its clients' own, divided among the actors. Needs `flwr[simulation]>=1.41,<1.43`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

Record = dict[str, Any]
ROOT = Path(__file__).parents[1]
CONTENDERS = ("fgrpo", "flower fedavg")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # not 15: whoever else is on the machine would go before
}
KEYS = {
    "rollout.prompts_per_step": 16,
    "rollout.group_size": 8,
    "rollout.max_new_tokens": 8,
    "train.local_steps": 4,
    "train.updates_per_rollout": 2,
    "train.lr": 3e-4,
    "evaluation.prompts": 8,
    "engine.threads": 1,
}
LITTLE = {
    "rollout.prompts_per_step": 1,
    "rollout.group_size": 2,
    "train.local_steps": 1,
    "train.updates_per_rollout": 1,
}
TASK = {"reasoning_gym": "gcd", "params": {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 60}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="3", help="numbers of nodes; with the first both train in earnest")
    parser.add_argument("--rounds", type=int, default=5, help="the first is left out: nodes still load")
    parser.add_argument("--render", nargs="+", type=Path, help="print these results as tables, and measure nothing")
    parser.add_argument("--play", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.render:
        print("\n".join(table(json.loads(path.read_text())) for path in options.render))
    elif options.play:
        contender, nodes, keys, out = options.play
        rounds = {"fgrpo": play_ours, "flower fedavg": play_fedavg}[contender](int(nodes), json.loads(keys))
        Path(out).write_text(json.dumps(rounds))
    else:
        path = measure([int(number) for number in options.nodes.split(",")], options.rounds)
        print(table(json.loads(path.read_text())))
        print(f"written: {path}")
    return 0


def measure(nodes: Sequence[int], rounds: int) -> Path:
    """Have every contender play every case, and write what came of it."""
    cases = [(nodes[0], "training", KEYS), *((number, "next to none", {**KEYS, **LITTLE}) for number in nodes)]
    records = []
    for number, work, keys in cases:
        for contender in CONTENDERS:
            played = _in_a_process(contender, number, {**keys, "rounds": rounds})
            records.append({"contender": contender, "nodes": number, "work": work, "rounds": played})
            print(f"{contender}, {number} nodes, {work}: {_median(played, 'seconds'):.2f} s a round", flush=True)
    now = datetime.datetime.now(datetime.timezone.utc)
    packages = {name: importlib.metadata.version(name) for name in ("torch", "flwr", "ray")}
    head = {"date": now.isoformat(timespec="seconds"), "cpu": platform.processor() or platform.machine(), **packages}
    path = ROOT / "benchmarks" / "results" / f"flower_cpu_{now:%Y-%m-%d}.json"
    path.write_text(json.dumps({**head, "cores": _cores(), "records": records}, indent=1) + "\n")
    return path


def table(content: Record) -> str:
    """Return results as Markdown."""
    lines = [
        f"{content['cores']} cores ({content['cpu']}), torch {content['torch']}, flwr {content['flwr']}, "
        f"{content['date'][:10]}; medians of the rounds after the first",
        "",
        "| | nodes | training | bytes up a round | bytes down a round | seconds a round | of them overhead |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in content["records"]:
        up, down, seconds, overhead = (_median(record["rounds"], key) for key in ("up", "down", "seconds", "overhead"))
        lines.append(
            f"| {record['contender']} | {record['nodes']} | {record['work']} | {up:,.0f} | {down:,.0f} | {seconds:.2f} "
            f"| {overhead:.2f} |"
        )
    return "\n".join([*lines, ""])


def play_ours(nodes: int, keys: Record) -> list[Record]:
    """Play with our apps, and return what each round took."""
    from flwr.serverapp import ServerApp

    from fgrpo.engines.flower.client_app import client_app
    from fgrpo.engines.flower.server_app import play
    from fgrpo.records import Report, RoundSummary
    from fgrpo.run_folder import RunFolder

    with tempfile.TemporaryDirectory() as folder:
        app, keys = Path(folder), {**keys, "output_dir": f"{folder}/run", "flower.min_clients": nodes}
        clients = {_name(number): {"tasks": [TASK]} for number in range(nodes)}
        (app / "simulation.yaml").write_text(json.dumps({"clients": clients}))
        server = ServerApp()
        server.main()(lambda grid, context: play(grid, keys) and None)
        _simulate(server, _with_keys(client_app(app), keys), nodes)
        records = list(RunFolder(keys["output_dir"]).records())
    rounds = []
    for summary in (record for record in records if isinstance(record, RoundSummary)):
        own = [r.seconds for r in records if isinstance(r, Report) and r.round == summary.round]
        rounds.append(
            _round(
                sum(summary.uplink_bytes.values()),
                sum(summary.downlink_bytes.values()),
                sum(summary.seconds.values()),
                sum(sum(seconds.values()) for seconds in own),
            )
        )
    return rounds


def play_fedavg(nodes: int, keys: Record) -> list[Record]:
    """Play with Flower's FedAvg and float32 parameters, the clients training by our functions."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg

    rounds: list[Record] = []

    class Timed(FedAvg):
        def configure_train(self, server_round: int, arrays: ArrayRecord, config: Any, grid: Grid) -> Iterable[Message]:
            self.start = time.perf_counter()
            self.down = nodes * _bytes(arrays)
            return super().configure_train(server_round, arrays, config, grid)

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            replies = list(replies)
            result = super().aggregate_train(server_round, replies)
            seconds = time.perf_counter() - self.start
            up = sum(_bytes(reply.content["arrays"]) for reply in replies)
            own = sum(reply.content["metrics"]["seconds"] for reply in replies)
            rounds.append(_round(up, self.down, seconds, own))
            return result

    server, client = ServerApp(), ClientApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        from fgrpo.client.policy import Policy

        arrays = ArrayRecord(dict(Policy.load(_config(0, keys)).model.state_dict()))
        strategy = Timed(
            fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes, weighted_by_key="sequences"
        )
        strategy.start(grid, arrays, num_rounds=keys["rounds"], timeout=None)

    @client.train()
    def train(message: Message, context: Context) -> Message:
        from fgrpo.client.local_training import train_locally
        from fgrpo.client.masters import Masters
        from fgrpo.stopwatch import Stopwatch
        from fgrpo.wire.parameters import flatten

        config = _config(int(context.node_config["partition-id"]), keys)
        owners, policy = _workplace(config)
        policy.model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        start, (owner,) = time.perf_counter(), owners.values()
        number = int(message.content["config"]["server-round"])
        report = train_locally(policy, Masters(policy.model, flatten(policy.model)), owner, config, number, Stopwatch())
        metrics = {"sequences": report.sequences, "seconds": time.perf_counter() - start}
        reply = {"arrays": ArrayRecord(dict(policy.model.state_dict())), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(reply), reply_to=message)

    _simulate(server, client, nodes)
    return rounds


_policies: list[Any] = []


def _workplace(config: Any) -> tuple[Any, Any]:
    """Return the clients of a configuration, and the model that an actor keeps from one message to the next."""
    from fgrpo.client.owners import Owners
    from fgrpo.client.policy import Policy

    if not _policies:
        _policies.append(Policy.load(config))
    return Owners(config), _policies[0]


def _config(number: int, keys: Record) -> Any:
    from fgrpo.settings import make_config

    options = [f"--{key}={value}" for key, value in keys.items()]
    return make_config({"clients": {_name(number): {"tasks": [TASK]}}}, options, "bench_flower")


def _with_keys(app: Any, keys: Record) -> Any:
    """Return an app that is told a run's keys, which this way of starting a simulation has no place for."""
    from flwr.clientapp import ClientApp

    told = ClientApp()
    for kind in (told.query, told.train, told.evaluate):
        kind()(lambda message, context: app(message, replace(context, run_config=keys)))
    return told


def _simulate(server: Any, client: Any, nodes: int) -> None:
    from flwr.simulation import run_simulation

    resources = {"init_args": {"num_cpus": _cores()}, "client_resources": {"num_cpus": 1}}
    run_simulation(server_app=server, client_app=client, num_supernodes=nodes, backend_config=resources)


def _in_a_process(contender: str, nodes: int, keys: Record) -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rounds.json"
        command = [sys.executable, __file__, "--play", contender, str(nodes), json.dumps(keys), str(out)]
        ended = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
        if not out.exists():
            raise SystemExit(f"{contender} with {nodes} nodes failed:\n{ended.stderr[-4000:]}")
        rounds: list[Record] = json.loads(out.read_text())
        return rounds


def _round(up: int, down: int, seconds: float, own: float) -> Record:
    """Return a round; its overhead is what is left when the clients' own seconds are divided among the actors."""
    return {"up": up, "down": down, "seconds": seconds, "overhead": seconds - own / _cores()}


def _median(rounds: Sequence[Record], key: str) -> float:
    return statistics.median(played[key] for played in rounds[1:] or rounds)


def _bytes(arrays: Any) -> int:
    return sum(len(array.data) for array in arrays.values())


def _name(number: int) -> str:
    return f"client-{number:03d}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    raise SystemExit(main())
