"""Rounds against a `LocalGrid`, and where they should lead."""

from honest import delta

from fgrpo.federation import play_round
from fgrpo.records import ServerState
from fgrpo_kernels.codec import aggregate, encode


class Watcher:
    def stage(self, who, stage):
        pass

    def record(self, record):
        pass


def play(engine, config, rounds=1, state=None):
    state, summaries = state or ServerState.initial(engine.initial_parameters()), []
    for _ in range(rounds):
        state, summary, _ = play_round(state, engine, config, Watcher())
        summaries.append(summary)
    return state, summaries


def moved(engine, *clients, number=1):
    """Where a round with these replies leads."""
    size = engine.manifest.size
    encodeds = [encode(delta(client, number, size)) for client in clients]
    return engine.initial_parameters() + aggregate(encodeds, [1 / len(clients)] * len(clients))
