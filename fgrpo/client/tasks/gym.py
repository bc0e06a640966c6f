"""reasoning-gym, imported without the SyntaxWarnings of the packages that it brings."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

__all__ = ["DATASETS", "reasoning_gym"]
