"""TRL's trainer in the clients of Flower's simulation, one actor of one thread for each core, averaged by its FedAvg.

An actor keeps model and trainer from round to round. It makes them before the first round, on a query, so that neither
imports nor loading count in a round.
"""

from __future__ import annotations

import functools
import os
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from rivals.record import Played, Round, Task, Work

WEIGHT = "sequences"


def play(task: Task) -> Played:
    from fgrpo.client.owners import make_clients

    config, played = task.config(), Played()
    members = len(make_clients(config))
    final: list[ArrayRecord] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        arrays = _initial_arrays(grid, members)
        strategy = _TimedFedAvg(played, members)
        result = strategy.start(grid, arrays, num_rounds=config.rounds, timeout=None)
        final.append(result.arrays)

    try:
        run_simulation(
            server_app=server,
            client_app=_client_app(task),
            num_supernodes=members,
            backend_config={"init_args": {"num_cpus": task.cores}, "client_resources": {"num_cpus": 1}},
        )
    except BaseException:  # the server's thread would go on waiting for its clients for ever
        traceback.print_exc()
        os._exit(1)
    from rivals.held_out import held_out_accuracy

    played.after.update(held_out_accuracy(config, final[0].to_torch_state_dict()))
    return played


def _client_app(task: Task) -> ClientApp:
    app = ClientApp()

    @app.query()
    def prepare(message: Message, context: Context) -> Message:
        arrays = ArrayRecord(_actor(task).parameters())
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        clients, number = _actor(task), message.content["config"]["server-round"]
        parameters = message.content["arrays"].to_torch_state_dict()
        work = clients.train(int(context.node_config["partition-id"]), parameters, number)
        reply = {"arrays": ArrayRecord(clients.parameters()), "metrics": MetricRecord(asdict(work))}
        return Message(RecordDict(reply), reply_to=message)

    return app


@functools.cache
def _actor(task: Task) -> Any:
    """What an actor keeps from one message to the next. The server's process has no need of it, nor of PyTorch."""
    from rivals.trl_client import TrlClients

    return TrlClients(task.config(), threads=1)


def _initial_arrays(grid: Grid, members: int) -> ArrayRecord:
    """Have every actor get ready, and return the starting parameters as one of them has them."""
    while len(nodes := list(grid.get_node_ids())) < members:
        time.sleep(0.1)
    queries = [Message(content=RecordDict(), message_type="query", dst_node_id=node) for node in nodes]
    return _contents(grid.send_and_receive(queries))[0]["arrays"]


def _contents(replies: Iterable[Message]) -> list[RecordDict]:
    replies = list(replies)
    for reply in replies:
        if reply.has_error():
            raise RuntimeError(f"a client failed: {reply.error.reason}")
    return [reply.content for reply in replies]


class _TimedFedAvg(FedAvg):
    """Flower's strategy, which also notes what each round took."""

    def __init__(self, played: Played, members: int) -> None:
        nodes = {"min_train_nodes": members, "min_available_nodes": members}
        super().__init__(fraction_evaluate=0.0, weighted_by_key=WEIGHT, **nodes)
        self._played, self._start = played, 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._start = time.monotonic()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replied = time.monotonic()
        replies = list(replies)
        contents = _contents(replies)
        result = super().aggregate_train(server_round, replies)
        end = time.monotonic()
        uplink = sum(len(array.data) for content in contents for array in content["arrays"].values())
        stages = {"clients": replied - self._start, "aggregate": end - replied}
        work = Work.total(Work(**content["metrics"]) for content in contents)
        self._played.rounds.append(Round(self._start, end, end - self._start, stages, uplink, work))
        return result
