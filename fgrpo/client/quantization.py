"""A frozen base model in four bits a weight, by bitsandbytes; what is trained stands beside it in its own format."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fgrpo.errors import ConfigError, how_to_install


def quantized_loading(name: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the options with which `from_pretrained` quantises the linear layers, but for the LM head, as it reads.

    Args:
        name: `nf4`.
        dtype: in which the matrix products are computed.
        device: where the model goes; its weights are quantised there.

    Raises:
        ConfigError: bitsandbytes is not installed, or too old for transformers.
    """
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise ConfigError(f"quantization: {name} needs bitsandbytes, or a newer one: {how_to_install('bitsandbytes')}")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=name, bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config, "device_map": {"": device}}


def compute_as_in_training(model: nn.Module) -> None:
    """Keep a quantised model's rollouts to the arithmetic of its training.

    On CPUs with bfloat16 in hardware bitsandbytes repacks a layer when it is first evaluated, for a faster product in
    bfloat16 that passes no gradient on. From then on training would see it too.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
