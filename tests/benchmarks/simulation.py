"""Flower's simulation without Ray: nodes are calls of the ClientApp in this process, one after another."""

import sys
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

sys.path.append(str(Path(__file__).parents[1] / "engines" / "flower"))

from local_grid import LocalGrid


class Grid(LocalGrid):
    """What Flower's own strategies use besides."""

    def get_node_ids(self):
        return list(self.nodes)

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(set(self.push_messages(messages)))


def run_simulation(server_app: ServerApp, client_app: ClientApp, num_supernodes: int, backend_config: dict) -> None:
    """As `flwr.simulation.run_simulation`: a node that raises has replied with an error."""
    assert backend_config["client_resources"] == {"num_cpus": 1}
    grid = Grid()
    for number in range(num_supernodes):
        config = {"partition-id": number, "num-partitions": num_supernodes}
        grid.nodes[10 + number] = _node(client_app, Context(1, 10 + number, config, RecordDict(), {}))
    server_app(grid, Context(1, 0, {}, RecordDict(), {}))


def _node(app, context):
    def reply(message):
        try:
            return app(message, context)
        except Exception as error:
            return Message(Error(1, str(error)), reply_to=message)

    return reply
