"""Every random choice is a function of the run's seed and of where it is made, so nothing random needs saving."""

from __future__ import annotations

from hashlib import blake2b


def derive_seed(*parts: int | str) -> int:
    """Return a 48-bit seed that depends on every part, for example `derive_seed(config.seed, client, round, step)`."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=6).digest(), "little")
