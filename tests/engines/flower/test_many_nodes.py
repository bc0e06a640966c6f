"""A thousand nodes: what the server holds does not grow with their number or with the rounds."""

import gc
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from honest import Honest, delta, report
from local_grid import LocalGrid
from played import Watcher

from fgrpo.config import ParticipationConfig
from fgrpo.engines.flower.engine import Flower
from fgrpo.engines.flower.messages import Answer
from fgrpo.federation import play_round
from fgrpo.records import Reply
from fgrpo.run_folder import RunFolder
from fgrpo.settings import to_yaml
from fgrpo.wire.payload import Header, pack
from fgrpo_kernels.codec import encode


class Light(Honest):
    """One that holds nothing, and shares its delta with all others of its kind."""

    def answer(self, ask):
        if ask.task == "describe":
            return super().answer(ask)
        (client,) = ask.clients
        header = Header(client, ask.round, self.manifest.hash, ask.shipment.model)
        return Answer((Reply(client, report(client, ask.round), pack(shared(self.manifest.size), header)),))


@lru_cache
def shared(size):
    return encode(delta("all", 0, size))


def test_a_thousand_nodes_do_not_make_the_server_grow(config, manifest, tmp_path):
    """With the default rule, which looks at each client's last delta: it lies in the run's folder, not in memory."""
    grid = LocalGrid()
    grid.nodes = {number: Light(manifest, f"client-{number:04d}") for number in range(1000)}
    many = replace(config, participation=ParticipationConfig(clients_per_round=64))
    assert many.aggregation.rule == "agreement"
    engine, resident, again = Flower(grid, many), [], 0
    folder = RunFolder.create(tmp_path / "run", to_yaml(many))
    assert len(engine.clients) == 1000
    state = folder.commit(folder.initial(engine.initial_parameters()), [], {})
    for _ in range(5):
        state, summary, accepted = play_round(state, engine, many, Watcher())
        assert len(summary.weights) == 64
        again += len(summary.agreement)
        state = folder.commit(state, [summary], {reply.report.client: reply.payload for reply in accepted})
        del accepted
        grid.sent.clear()
        grid.answered.clear()
        for node in grid.nodes.values():
            node.asks.clear()
            node.replies.clear()
        gc.collect()
        resident.append(4096 * int(Path("/proc/self/statm").read_text().split()[1]))
    assert len(state.last_deltas) == 5 * 64 - again
    assert again > 0, "nobody took part twice, so nothing was compared"
    replies = sum(summary.uplink_bytes.values())
    assert resident[-1] - resident[1] < replies / 2  # three rounds later; the replies of one are 24 MB
