"""What a run has told of its clients, as an epsilon.

A round's mean has noise of `noise * clip * root(sum w_k^2)`; a client in whose place another sends noise alone moves it
by at most `w_max * clip`, w_max being the largest weight that the rule gives. The quotient of both is the round's noise
multiplier z_t. Several are together one of `1 / root(sum 1 / z_t^2)`, so one number is all that a run needs to keep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fgrpo.config import AggregationConfig, PrivacyConfig
from fgrpo.errors import ConfigError

_MUCH = 100.0  # from here on the exact distribution takes gigabytes, and the epsilon, above 90, means nothing


def spent_in_round(weights: Sequence[float], aggregation: AggregationConfig, config: PrivacyConfig) -> float:
    """Return `1 / z^2` of a round with these weights."""
    count = len(weights)
    largest = 1 / count if aggregation.rule == "uniform" else max(aggregation.cap, 1 / count)
    return largest**2 / (config.noise**2 * sum(weight**2 for weight in weights))


def epsilon(spent: float, delta: float) -> float:
    """Return the epsilon at a delta for what was spent.

    Raises:
        ConfigError: dp-accounting is not installed.
    """
    if spent == 0:
        return 0.0
    try:
        from dp_accounting import dp_event
        from dp_accounting.pld import PLDAccountant
        from dp_accounting.rdp import RdpAccountant
    except ImportError:
        raise ConfigError("privacy: the epsilon needs dp-accounting; pip install 'fgrpo[privacy]'") from None
    accountant = PLDAccountant() if spent < _MUCH else RdpAccountant()
    accountant.compose(dp_event.GaussianDpEvent(1 / math.sqrt(spent)))
    return float(accountant.get_epsilon(delta))
