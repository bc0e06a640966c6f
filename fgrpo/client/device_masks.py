"""Attention masks on a GPU without a look at the padding: at each forward pass, one would wait for the device."""

from __future__ import annotations

from typing import Any

from torch import Tensor

_NAME = "fgrpo_sdpa"


def mask_without_looking(model: Any) -> None:
    """Give a model on a GPU transformers' SDPA with a mask wherever it is told of padding.

    Transformers leaves the mask out if nothing is padded, which it asks the device for every token that is decoded.
    """
    if model.device.type == "cpu" or model.config._attn_implementation != "sdpa":
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(_NAME, sdpa_attention_forward)
    AttentionMaskInterface.register(_NAME, _mask)
    model.set_attn_implementation(_NAME)


def _mask(*, attention_mask: Tensor | None, allow_is_causal_skip: bool = True, **options: Any) -> Tensor | None:
    """An attention mask, as transformers asks for one: bool `[B, 1, queries, keys]`, or None for a causal one."""
    from transformers.masking_utils import sdpa_mask

    may_skip = allow_is_causal_skip and attention_mask is None
    return sdpa_mask(attention_mask=attention_mask, allow_is_causal_skip=may_skip, **options)
