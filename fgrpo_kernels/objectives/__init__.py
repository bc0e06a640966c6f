"""Policy objectives: one small frozen dataclass a file.

A new objective is a new file with a class that has the members of `Objective`; no other code changes.
"""

from fgrpo_kernels.objectives.base import Objective, Tokens
from fgrpo_kernels.objectives.ppo_clip import PPOClip

__all__ = ["Objective", "PPOClip", "Tokens"]
