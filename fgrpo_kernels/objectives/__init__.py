"""Policy objectives: one small frozen dataclass a file, with its PyTorch form and, token by token, its Triton form.

A new objective is a new file with a class that has the members of `Objective`; its Triton form adds a line here.
"""

from fgrpo_kernels.objectives.base import DeviceForm, Objective, Tokens
from fgrpo_kernels.objectives.ppo_clip import PPOClip, ppo_clip

DEVICE_FUNCTIONS = {
    "ppo_clip": ppo_clip,
}

__all__ = ["DEVICE_FUNCTIONS", "DeviceForm", "Objective", "PPOClip", "Tokens"]
