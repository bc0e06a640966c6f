"""What a configuration can choose of the server: weightings, gains, step sizes and merges, a line and a source each."""

from __future__ import annotations

from typing import NamedTuple

from fgrpo.server.aggregation import WEIGHTINGS
from fgrpo.server.aggregation.gain import GAINS
from fgrpo.server.combine import MERGES
from fgrpo.server.step_size import STEP_SIZES


class Choice(NamedTuple):
    """One value of a configuration key."""

    name: str
    about: str
    source: str


def catalogue() -> dict[str, list[Choice]]:
    """Return, by key of the configuration, the values that it takes."""
    return {
        "aggregation.rule": [Choice(name, entry.about, entry.source) for name, entry in WEIGHTINGS.items()],
        "aggregation.gain": [Choice(name, *entry) for name, entry in GAINS.items()],
        "server.step": [Choice(name, entry.about, entry.source) for name, entry in STEP_SIZES.items()],
        "aggregation.robust": [Choice(name, about, "docs/robust.md") for name, about in MERGES.items()],
    }
