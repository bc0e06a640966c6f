"""What every sampler is asked and what it answers.

Shape suffixes: P prompts, L prompt tokens, B = P * group_size completions, T completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """Tokenised prompts, padded on the left.

    Attributes:
        tokens_PL: int64.
        mask_PL: int64, 1 where a token is real; every row has at least one.
    """

    tokens_PL: Tensor
    mask_PL: Tensor

    def to(self, device: torch.device) -> Prompts:
        return Prompts(*(x.to(device, non_blocking=True) for x in (self.tokens_PL, self.mask_PL)))


@dataclass(frozen=True)
class Request:
    """How prompts are to be continued. Nothing else may shape the distribution, whatever comes with a checkpoint.

    Attributes:
        group_size: completions of each prompt.
        max_new_tokens: length limit of a completion, in tokens.
        temperature: the logits are divided by it.
        greedy: take the likeliest token instead of drawing one.
        seed: decides the draws, together with nothing else.
        end_ids: tokens that end a completion, and belong to it.
        pad_id: what follows the end.
    """

    group_size: int
    max_new_tokens: int
    temperature: float
    greedy: bool
    seed: int
    end_ids: tuple[int, ...]
    pad_id: int


@dataclass(frozen=True)
class Completions:
    """Completions of prompts, those of one prompt being neighbours.

    Attributes:
        tokens_BT: int64, padded after the first end token; on the prompts' device.
        logp_BT: float32, log-probability (nats) of each token under the distribution that it was drawn from; 0 after
            the end, NaN where the model's logits are no numbers.
    """

    tokens_BT: Tensor
    logp_BT: Tensor

    def on_host(self) -> Completions:
        """Return them in CPU memory, brought there in one transfer: each makes the host wait for the device."""
        if self.tokens_BT.device.type == "cpu":
            return self
        tokens_BT, bits_BT = torch.stack([self.tokens_BT, self.logp_BT.view(torch.int32).long()]).cpu()
        return Completions(tokens_BT, bits_BT.int().view(torch.float32))


class Sampler(Protocol):
    """Continues prompts with the model as it is at the moment of the call."""

    def __call__(self, prompts: Prompts, request: Request) -> Completions: ...
