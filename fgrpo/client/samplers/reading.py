"""How a model reads on where it stopped: through its cache, or, where that is not exact, from the start again.

Shape suffixes: P prompts, B rows, L tokens so far, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fgrpo.client.model import is_adapted
from fgrpo.client.samplers.base import Prompts

# What transformers calls a model's memory: 5.24 and later, before, and of models without attention before.
_CACHES = ("cache", "past_key_values", "cache_params")


class Reader(Protocol):
    """Rows of text that a model has read, and can read on.

    Attributes:
        picks: rows can be left out and repeated.
    """

    picks: bool

    def start(self, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Read whole rows, padded on the left; return the logits [B, V] of what follows."""
        ...

    def read(self, tokens_B: Tensor) -> Tensor:
        """Read one more token of every row; return the logits [B, V] of what follows."""
        ...

    def pick(self, index: Tensor) -> None:
        """Go on with the rows at an int64 index only; a row named twice becomes two."""
        ...


class _Model:
    """A causal language model, told no more than its `forward` asks for."""

    def __init__(self, model: nn.Module) -> None:
        # Without peft's outermost module: the adapters sit in the layers.
        self._model: Any = model.get_base_model() if is_adapted(model) else model  # type: ignore[operator]
        asks = inspect.signature(self._model.forward).parameters
        self._takes_positions = "position_ids" in asks
        self._options: dict[str, Any] = {"return_dict": True}
        if "logits_to_keep" in asks:
            self._options["logits_to_keep"] = 1

    def __call__(self, tokens_BL: Tensor, mask_BL: Tensor | None, positions_BL: Tensor, **memory: Any) -> Any:
        positions = {"position_ids": positions_BL} if self._takes_positions else {}
        return self._model(input_ids=tokens_BL, attention_mask=mask_BL, **positions, **self._options, **memory)


def _positions(mask_BL: Tensor) -> Tensor:
    return (mask_BL.cumsum(dim=1) - 1).clamp_min(0)


class CacheReader:
    """Reads a token once; the model's cache keeps what it needs of it.

    Args:
        picks: whether the cache's rows may be picked. Some caches cannot, or do it wrong.
        masks: whether tokens that are read on come with the mask. A state has been through the padding already.
    """

    def __init__(self, model: nn.Module, picks: bool = True, masks: bool = True) -> None:
        self._model, self.picks, self._masks = _Model(model), picks, masks
        self._cache: dict[str, Any] = {}

    def start(self, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        self._mask_BL, positions_BL = mask_BL, _positions(mask_BL)
        self._position_B1 = positions_BL[:, -1:]
        return self._forward(tokens_BL, positions_BL)

    def read(self, tokens_B: Tensor) -> Tensor:
        self._mask_BL = torch.cat([self._mask_BL, torch.ones_like(self._mask_BL[:, :1])], dim=1)
        self._position_B1 = self._position_B1 + 1
        return self._forward(tokens_B[:, None], self._position_B1)

    def pick(self, index: Tensor) -> None:
        self._mask_BL, self._position_B1 = self._mask_BL[index], self._position_B1[index]
        for cache in self._cache.values():
            cache.reorder_cache(index)

    def _forward(self, tokens_BL: Tensor, positions_BL: Tensor) -> Tensor:
        mask_BL = self._mask_BL if self._masks or not self._cache else None
        output = self._model(tokens_BL, mask_BL, positions_BL, use_cache=True, **self._cache)
        self._cache = next(({name: output[name]} for name in _CACHES if name in output), {})
        return output.logits[:, -1]


class RereadingReader:
    """Reads every row from its start for every token: slow, and right for every model."""

    picks = True

    def __init__(self, model: nn.Module) -> None:
        self._model = _Model(model)

    def start(self, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        self._tokens_BL, self._mask_BL = tokens_BL, mask_BL
        return self._model(tokens_BL, mask_BL, _positions(mask_BL), use_cache=False).logits[:, -1]

    def read(self, tokens_B: Tensor) -> Tensor:
        tokens_BL = torch.cat([self._tokens_BL, tokens_B[:, None]], dim=1)
        return self.start(tokens_BL, torch.cat([self._mask_BL, torch.ones_like(self._mask_BL[:, :1])], dim=1))

    def pick(self, index: Tensor) -> None:
        self._tokens_BL, self._mask_BL = self._tokens_BL[index], self._mask_BL[index]


def start_groups(reader: Reader, prompts: Prompts, group_size: int) -> Tensor:
    """Read prompts once for their whole group, where rows can be picked; return the logits [P * group_size, V]."""
    prompt_B = torch.arange(len(prompts.tokens_PL), device=prompts.tokens_PL.device).repeat_interleave(group_size)
    if not reader.picks or group_size == 1:
        return reader.start(prompts.tokens_PL[prompt_B], prompts.mask_PL[prompt_B])
    logits_PV = reader.start(prompts.tokens_PL, prompts.mask_PL)
    reader.pick(prompt_B)
    return logits_PV[prompt_B]


@torch.inference_mode()
def find_reader(model: nn.Module) -> Callable[[], Reader]:
    """Try it: return what makes the fastest reader that gives the logits of reading from the start.

    A cache does not for models that take their positions from its length, or treat its padding as text.
    """
    exact_NV = _trial(model, RereadingReader(model))
    eps = max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())
    for picks, masks in product((True, False), repeat=2):
        try:
            tried_NV = _trial(model, CacheReader(model, picks, masks))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):  # a cache of another kind
            continue
        if _agree(tried_NV, exact_NV, math.sqrt(eps)):
            return partial(CacheReader, model, picks, masks)
    return partial(RereadingReader, model)


def _trial(model: nn.Module, reader: Reader) -> Tensor:
    """Return logits [N, V] after two prompts of very different length, after one token more, after two of some."""
    device = next(model.parameters()).device
    vocabulary: int = model.config.get_text_config().vocab_size  # type: ignore[operator,union-attr]
    tokens_PL = torch.linspace(1, vocabulary - 1, 24, device=device).long().view(2, 12)
    mask_PL = torch.ones_like(tokens_PL)
    mask_PL[1, :9] = 0
    next_TB = torch.linspace(vocabulary - 1, 1, 8, device=device).long().view(2, 4)
    kept = torch.tensor([1, 2, 3], device=device)
    logits = [start_groups(reader, Prompts(tokens_PL, mask_PL), group_size=2), reader.read(next_TB[0])]
    if reader.picks:
        reader.pick(kept)
        logits.append(reader.read(next_TB[1, kept]))
    else:
        logits.append(reader.read(next_TB[1])[kept])
    return torch.cat(logits)


def _agree(tried_NV: Tensor, exact_NV: Tensor, tolerance: float) -> bool:
    """Whether logits differ by no more than a part of how they vary in a row.

    Rounding depends on the size of a batch, and in bfloat16 it is 2^-8 of a number in every layer. What a wrong cache
    changes is as large as what the logits say.
    """
    said_NV = exact_NV.isfinite()  # some models rule tokens out by -inf
    if not torch.equal(tried_NV.isfinite(), said_NV):
        return False
    tried_NV, exact_NV = (x.float().masked_fill(~said_NV, 0.0) for x in (tried_NV, exact_NV))
    error_N = (tried_NV - exact_NV).std(dim=1)
    return bool((error_N <= tolerance * exact_NV.std(dim=1)).all())
