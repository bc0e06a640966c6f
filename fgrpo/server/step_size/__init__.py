"""Step sizes, by the names that `server.step` takes. A new one is a new file beside these and a line in the table."""

from __future__ import annotations

from typing import NamedTuple

from fgrpo.config import Config
from fgrpo.server.step_size.agreement import Agreement
from fgrpo.server.step_size.base import StepSize
from fgrpo.server.step_size.decay import Decay
from fgrpo.server.step_size.fedexp import FedExP
from fgrpo.server.step_size.fixed import Fixed

__all__ = ["STEP_SIZES", "Agreement", "Decay", "FedExP", "Fixed", "StepSize", "chosen_step", "make_step_size"]


class Entry(NamedTuple):
    """A step size as `fgrpo rules` lists it; `compares_deltas` as for weightings."""

    step_size: StepSize
    about: str
    source: str
    compares_deltas: bool = False


STEP_SIZES = {
    "fixed": Entry(Fixed(), "1", "-"),
    "decay": Entry(Decay(), "1 / sqrt(round)", "-"),
    "fedexp": Entry(FedExP(), "max(1, half the spread of the deltas)", "arXiv 2301.09604"),
    "agreement": Entry(
        Agreement(),
        "large while clients' deltas agree with their own last ones, small when only noise is left",
        "docs/aggregation.md",
        compares_deltas=True,
    ),
}


def chosen_step(config: Config) -> str:
    """Return the name of the step size that a configuration names, or that belongs to its rule."""
    if config.server.step is not None:
        return config.server.step
    agrees = config.aggregation.rule == "agreement" and config.server.optimizer == "plain"
    return "agreement" if agrees else "fixed"


def make_step_size(config: Config) -> StepSize:
    """Return the step size of a configuration."""
    return STEP_SIZES[chosen_step(config)].step_size
