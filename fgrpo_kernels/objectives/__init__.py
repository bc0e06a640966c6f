"""Policy objectives: one small frozen dataclass a file, with its PyTorch form and, token by token, its Triton form.

A new objective is a new file with a class that has the members of `Objective`; its Triton form adds a line here.
"""

from fgrpo_kernels.objectives.base import DeviceForm, Objective, Tokens
from fgrpo_kernels.objectives.cispo import CISPO, cispo
from fgrpo_kernels.objectives.gmpo import GMPO
from fgrpo_kernels.objectives.ppo_clip import PPOClip, ppo_clip
from fgrpo_kernels.objectives.sapo import SAPO, sapo
from fgrpo_kernels.objectives.vespo import VESPO

DEVICE_FUNCTIONS = {
    "ppo_clip": ppo_clip,
    "cispo": cispo,
    "sapo": sapo,
}

__all__ = ["CISPO", "DEVICE_FUNCTIONS", "GMPO", "SAPO", "VESPO", "DeviceForm", "Objective", "PPOClip", "Tokens"]
