"""Sampling with our own decoding loop over a transformers model: completions that have ended cost nothing any more."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgrpo.client.samplers.base import Completions, Prompts, Request
from fgrpo.client.samplers.draw import draw, uniforms
from fgrpo.client.samplers.reading import Reader, find_reader, start_groups

# Rows that have ended leave the batch once they are this part of it: leaving costs a copy of the others' cache.
_LEAVING = 0.25


def _tokens_per_question(device: torch.device) -> int:
    """Return how often to ask who has ended: on an accelerator, every question waits for it."""
    return 1 if device.type == "cpu" else 8


class TransformersSampler:
    """Samples from the model itself, as it is; the log-probabilities are those that training computes with.

    Nothing of the checkpoint's generation settings is read. `model` is to be in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self._make_reader = find_reader(model)

    def __call__(self, prompts: Prompts, request: Request) -> Completions:
        rows, device = len(prompts.tokens_PL) * request.group_size, prompts.tokens_PL.device
        # Made here, as what is made in inference mode could not be used in training.
        tokens_BT = torch.full((rows, request.max_new_tokens), request.pad_id, device=device)
        logp_BT = torch.zeros(rows, request.max_new_tokens, device=device)
        with torch.inference_mode():
            length = _decode(self._make_reader(), prompts, request, tokens_BT, logp_BT)
        return Completions(tokens_BT[:, :length], logp_BT[:, :length])


def _decode(reader: Reader, prompts: Prompts, request: Request, tokens_BT: Tensor, logp_BT: Tensor) -> int:
    """Fill tokens and log-probabilities row by row until every row has ended; return how many columns were filled.

    The suffix A is for the rows that are still in the batch.
    """
    rows, device = len(tokens_BT), tokens_BT.device
    uniform_TA = None
    if not request.greedy:
        uniform_TA = uniforms(request.seed, request.max_new_tokens, rows).to(device, non_blocking=True)
    end_ids = torch.tensor(request.end_ids, dtype=torch.int64).to(device, non_blocking=True)
    tokens_per_question = _tokens_per_question(device)
    row_A = torch.arange(rows, device=device)
    ended_A = torch.zeros(rows, dtype=torch.bool, device=device)
    logits_AV = start_groups(reader, prompts, request.group_size)
    for t in range(request.max_new_tokens):
        token_A, logp_A = draw(logits_AV, request.temperature, None if uniform_TA is None else uniform_TA[t])
        tokens_BT[row_A, t] = token_A.masked_fill(ended_A, request.pad_id)
        logp_BT[row_A, t] = logp_A.masked_fill(ended_A, 0.0)
        ended_A = ended_A | torch.isin(token_A, end_ids)
        if t + 1 == request.max_new_tokens:
            break
        if (t + 1) % tokens_per_question == 0:
            kept = ended_A.logical_not().nonzero()[:, 0]
            if len(kept) == 0:
                break
            if reader.picks and len(kept) <= (1 - _LEAVING) * len(row_A):
                reader.pick(kept)
                row_A, ended_A, token_A = row_A[kept], ended_A[kept], token_A[kept]
                uniform_TA = None if uniform_TA is None else uniform_TA[:, kept]
        logits_AV = reader.read(token_A)
    return t + 1
