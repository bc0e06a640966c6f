"""Policy objectives: one small frozen dataclass a file, with its PyTorch form and its Triton form.

A new objective is a new file with a class that has the members of `Objective`; its Triton form adds two lines here.
"""

from fgrpo_kernels.objectives.base import DeviceForm, DeviceGather, Objective, Tokens, device_form, plain_log_ratio
from fgrpo_kernels.objectives.cispo import CISPO, cispo
from fgrpo_kernels.objectives.gmpo import GMPO, gmpo, held_log_ratio
from fgrpo_kernels.objectives.ppo_clip import PPOClip, ppo_clip
from fgrpo_kernels.objectives.sapo import SAPO, sapo
from fgrpo_kernels.objectives.vespo import VESPO, bounded_log_ratio, vespo

DEVICE_FUNCTIONS = {
    "ppo_clip": ppo_clip,
    "cispo": cispo,
    "sapo": sapo,
    "gmpo": gmpo,
    "vespo": vespo,
}
DEVICE_GATHERS = {
    "ppo_clip": DeviceGather(plain_log_ratio),
    "cispo": DeviceGather(plain_log_ratio),
    "sapo": DeviceGather(plain_log_ratio),
    "gmpo": DeviceGather(held_log_ratio),
    "vespo": DeviceGather(bounded_log_ratio, mean=False, is_log_ratio=False),
}

__all__ = [
    "CISPO",
    "DEVICE_FUNCTIONS",
    "DEVICE_GATHERS",
    "GMPO",
    "SAPO",
    "VESPO",
    "DeviceForm",
    "DeviceGather",
    "Objective",
    "PPOClip",
    "Tokens",
    "device_form",
]
