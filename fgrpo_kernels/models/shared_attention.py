"""SDPA for long shared rows on a CPU: no `[L, L]` mask, and little work for tokens that do not see each other.

An attention implementation in transformers' own interface, named `SHARED_ATTENTION`. In place of a mask it takes which
tokens see which (`PrefixBatch.ends`, and positions for windows) as `[R, 1, 2, L]` integers. With any other mask, and in
generation, it is transformers' SDPA. The tokens that all others of a row continue, most of which is the prompt, attend
causally; the rest in blocks of queries, each block to the keys alone that some query in it sees.

R rows   L tokens of a row   h heads   d head size
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fgrpo_kernels.shared_prompts import PrefixBatch

SHARED_ATTENTION = "fgrpo_shared"
MIN_LENGTH = 512  # shorter rows are faster with a mask: fewer, larger calls
QUERIES = 128


def enable_shared_attention(model: Any) -> None:
    """Give a model on a CPU this attention where it has transformers' SDPA. Nothing but shared rows is different."""
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(SHARED_ATTENTION, shared_attention_forward)
        AttentionMaskInterface.register(SHARED_ATTENTION, sdpa_mask)
        model.set_attn_implementation(SHARED_ATTENTION)


def disable_shared_attention(model: Any) -> None:
    """Give it transformers' SDPA back."""
    if model.config._attn_implementation == SHARED_ATTENTION:
        model.set_attn_implementation("sdpa")


def compact_mask(batch: PrefixBatch) -> Tensor:
    """Return what stands for the mask, int64 `[R, 1, 2, L]`: ends and positions."""
    return torch.stack([batch.ends, batch.position_ids], dim=1)[:, None]


def shared_attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """`query`, `key` and `value` `[R, h, L, d]` as transformers gives them; returns `[R, L, h, d]`."""
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    for name in ("softcap", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(f"{type(module).__name__}: {name} of attention scores has no form for shared rows")
    rows = zip(*(x.split(1) for x in (query, key, value)), attention_mask[:, 0].unbind(), strict=True)
    return torch.cat([_attend(q, k, v, sees[0], sees[1], options) for q, k, v, sees in rows]), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, ends_L: Tensor, positions_L: Tensor, options: dict[str, Any]
) -> Tensor:
    """One row."""
    window, L = options.get("sliding_window"), len(ends_L)
    trunk = int((ends_L == ends_L[0]).int().cumprod(0).sum()) if window is None else 0
    outputs = []
    if trunk > 0:
        outputs.append(_sdpa(query[:, :, :trunk], key[:, :, :trunk], value[:, :, :trunk], None, options))
    index_L = torch.arange(L, device=ends_L.device)
    for start in range(trunk, L, QUERIES):
        block = slice(start, start + QUERIES)
        at_q = index_L[block, None]
        seen = (ends_L > start) & (index_L < start + QUERIES)
        if window is not None:
            seen &= positions_L > positions_L[block].min() - window
        at_k = seen.nonzero().flatten()
        sees = (at_k <= at_q) & (at_q < ends_L[at_k])
        if window is not None:
            sees &= positions_L[at_q] - positions_L[at_k] < window
        mask = query.new_zeros(sees.shape).masked_fill_(~sees, torch.finfo(query.dtype).min)
        outputs.append(_sdpa(query[:, :, block], key[:, :, at_k], value[:, :, at_k], mask, options))
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
    """With keys and values as they are where several query heads share one: repeated, they would be kept so."""
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=options.get("dropout", 0.0),
        is_causal=mask is None,
        scale=options.get("scaling"),
        enable_gqa=True,
    )
