"""Keys that were set and decide nothing: a rule that does not read them takes them in silence otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fgrpo.config import AggregationConfig, Config, ServerConfig
from fgrpo.server.aggregation import WEIGHTINGS

_OPTIMIZERS = {"momentum": ("momentum", "adam"), "beta2": ("adam",), "eps": ("adam",)}  # by key, those that read it


def unread(config: Config) -> Iterator[str]:
    """Yield a line for each key of the server's part that differs from its default and that nothing reads."""
    readers: dict[str, list[str]] = {}
    for rule, entry in WEIGHTINGS.items():
        for key in entry.reads:
            readers.setdefault(key, []).append(rule)
        for key in entry.reads_tried:
            readers.setdefault(key, []).append(f"{rule} with gain server")
    rule, optimizer = config.aggregation.rule, config.server.optimizer
    entry = WEIGHTINGS[rule]
    read = (*entry.reads, *(entry.reads_tried if config.aggregation.gain == "server" else ()))
    for key, rules in readers.items():
        if key not in read and (value := _set(config.aggregation, AggregationConfig(), key)) is not None:
            yield f"aggregation.{key}: {value} decides no weight with rule {rule}, only with {', '.join(rules)}"
    for key, optimizers in _OPTIMIZERS.items():
        if optimizer not in optimizers and (value := _set(config.server, ServerConfig(), key)) is not None:
            yield f"server.{key}: {value} decides nothing with optimizer {optimizer}, only with {', '.join(optimizers)}"


def _set(part: object, default: object, key: str) -> Any:
    """Return the key's value if it is not the default one."""
    value = getattr(part, key)
    return None if value == getattr(default, key) else value
