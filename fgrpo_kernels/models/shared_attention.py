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
    rows = zip(*(x.split(1) for x in (query, key, value)), attention_mask[:, 0].unbind(), strict=True)
    return torch.cat([_attend(module, q, k, v, sees[0], sees[1], options) for q, k, v, sees in rows]), None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends_L: Tensor,
    positions_L: Tensor,
    options: dict[str, Any],
) -> Tensor:
    """One row."""
    window, L = options.get("sliding_window"), len(ends_L)
    trunk = int((ends_L == ends_L[0]).int().cumprod(0).sum()) if window is None else 0
    outputs = []
    if trunk > 0:
        q, k, v = (x[:, :, :trunk] for x in (query, key, value))
        outputs.append(sdpa_attention_forward(module, q, k, v, None, **options)[0])
    index_L = torch.arange(L)
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
        mask = torch.zeros(sees.shape, dtype=query.dtype).masked_fill_(~sees, torch.finfo(query.dtype).min)[None, None]
        q, k, v = query[:, :, block], key[:, :, at_k], value[:, :, at_k]
        outputs.append(sdpa_attention_forward(module, q, k, v, mask, **options)[0])
    return torch.cat(outputs, dim=1)
