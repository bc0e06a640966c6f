"""What a configuration can choose of the server: weightings, gains, step sizes and merges, a line and a source each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fgrpo.config import Config
from fgrpo.server.aggregation import WEIGHTINGS
from fgrpo.server.aggregation.gain import GAINS
from fgrpo.server.combine import MERGES
from fgrpo.server.step_size import STEP_SIZES, chosen_step


class Choice(NamedTuple):
    """One value of a configuration key."""

    name: str
    about: str
    source: str


def catalogue() -> dict[str, list[Choice]]:
    """Return, by key of the configuration, the values that it takes, the default one with a star."""
    default = Config()
    return {
        "aggregation.rule": _choices(
            default.aggregation.rule, {name: (entry.about, entry.source) for name, entry in WEIGHTINGS.items()}
        ),
        "aggregation.gain": _choices(default.aggregation.gain, GAINS),
        "server.step": _choices(
            chosen_step(default), {name: (entry.about, entry.source) for name, entry in STEP_SIZES.items()}
        ),
        "aggregation.robust": _choices(
            default.aggregation.robust, {name: (about, "docs/robust.md") for name, about in MERGES.items()}
        ),
    }


def _choices(default: str, entries: Mapping[str, tuple[str, str]]) -> list[Choice]:
    return [Choice(name + (" *" if name == default else ""), *entry) for name, entry in entries.items()]
