"""From prompts to rollouts: what the model reads, what a sampler makes of it, and which of its tokens count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fgrpo.client.positions import check_positions
from fgrpo.client.prompts import render
from fgrpo.client.samplers.base import Prompts, Request, Sampler
from fgrpo.client.samplers.transformers import TransformersSampler
from fgrpo.config import RolloutConfig
from fgrpo.errors import TaskError, TrainingError
from fgrpo.records import Chat, Rollouts


def sample(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str | Chat],
    config: RolloutConfig,
    seed: int,
    *,
    greedy: bool = False,
    sampler: Sampler | None = None,
) -> Rollouts:
    """Sample `config.group_size` completions of every prompt, neighbours in the batch; or one each, greedily.

    Args:
        model: in evaluation mode.
        prompts: texts or chats, before the chat template.
        seed: decides the samples; the global random state is left as it was.
        sampler: made for this model, see `fgrpo.client.samplers`; by default one that uses the model itself.

    Raises:
        TaskError: a prompt without any token, one that passes the model's positions, or a chat that cannot be rendered.
        TrainingError: the model's logits are not numbers.
    """
    sampler = TransformersSampler(model) if sampler is None else sampler
    texts = [render(tokenizer, prompt, config.system_prompt) for prompt in prompts]
    encoded = encode(tokenizer, texts)
    check_positions(model, prompts, encoded.mask_PL, config.max_new_tokens)
    end_ids = end_token_ids(model, tokenizer)
    request = Request(
        group_size=1 if greedy else config.group_size,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        greedy=greedy,
        seed=seed,
        end_ids=tuple(end_ids),
        pad_id=tokenizer.pad_token_id,
    )
    sampled = sampler(encoded.to(next(model.parameters()).device), request).on_host()
    mask_BT = completion_mask(sampled.tokens_BT, end_ids)
    lengths = mask_BT.sum(dim=1).tolist()
    mask_BT = mask_BT[:, : max(lengths)]
    completion_BT, old_logp_BT = (x[:, : mask_BT.shape[1]] for x in (sampled.tokens_BT, sampled.logp_BT))
    if old_logp_BT.isnan().any():
        raise TrainingError("the model's logits are not numbers any more; training diverged, is train.lr too high?")
    prompt_BL = encoded.tokens_PL.repeat_interleave(request.group_size, dim=0)
    prompt_mask_BL = encoded.mask_PL.repeat_interleave(request.group_size, dim=0)
    said = [row[:length] for row, length in zip(completion_BT.tolist(), lengths, strict=True)]
    return Rollouts(
        tokens_BL=torch.cat([prompt_BL, completion_BT], dim=1),
        attention_BL=torch.cat([prompt_mask_BL, mask_BT.long()], dim=1),
        mask_BT=mask_BT,
        old_logp_BT=old_logp_BT.masked_fill(~mask_BT, 0.0),
        completions=tuple(tokenizer.batch_decode(said, skip_special_tokens=True)),
    )


def join(parts: Sequence[Rollouts]) -> Rollouts:
    """Return the sequences of all parts, padded to the same lengths."""
    prompts = max(part.prompt_length for part in parts)
    tokens = max(part.mask_BT.shape[1] for part in parts)

    def padded(part: Rollouts) -> list[Tensor]:
        left, right = prompts - part.prompt_length, tokens - part.mask_BT.shape[1]
        whole = [pad(x_BL, (left, right)) for x_BL in (part.tokens_BL, part.attention_BL)]
        return whole + [pad(x_BT, (0, right)) for x_BT in (part.mask_BT, part.old_logp_BT)]

    tokens_BL, attention_BL, mask_BT, old_logp_BT = map(torch.cat, zip(*map(padded, parts), strict=True))
    texts = tuple(text for part in parts for text in part.completions)
    return Rollouts(tokens_BL, attention_BL, mask_BT, old_logp_BT, texts)


def encode(tokenizer: Any, texts: Sequence[str]) -> Prompts:
    """Return texts as tokens, padded on the left, in CPU memory.

    A text that no chat template rendered gets what the tokenizer puts before texts (a beginning-of-sequence token), but
    not what it appends: after an end token there is nothing to continue.
    """
    is_bare = tokenizer.chat_template is None
    appended = _appended_tokens(tokenizer) if is_bare else 0
    rows = tokenizer(list(texts), add_special_tokens=is_bare)["input_ids"]
    rows = [row[: len(row) - appended] for row in rows]
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise TaskError(f"a prompt has no tokens: {text!r}")
    longest = max(len(row) for row in rows)
    tokens_PL = [[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows]
    mask_PL = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return Prompts(torch.tensor(tokens_PL), torch.tensor(mask_PL))


def _appended_tokens(tokenizer: Any) -> int:
    """Return how many tokens the tokenizer puts after a text."""
    bare = tokenizer("1", add_special_tokens=False)["input_ids"]
    whole = tokenizer("1")["input_ids"]
    starts = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return len(whole) - len(bare) - next(starts, len(whole) - len(bare))


def end_token_ids(model: nn.Module, tokenizer: Any) -> list[int]:
    """Return every token that ends a completion: the model's own list where it has one, else the tokenizer's."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = tokenizer.eos_token_id if ids is None else ids
    ids = ids if isinstance(ids, (list, tuple)) else [ids]
    return [i for i in ids if i is not None]


def completion_mask(completion_BT: Tensor, end_ids: Sequence[int]) -> Tensor:
    """True up to and including the first end-of-sequence token; what a sampler pads after it is False."""
    ends = torch.tensor(list(end_ids), dtype=completion_BT.dtype, device=completion_BT.device)
    is_end_BT = torch.isin(completion_BT, ends)
    ended_before_BT = is_end_BT.long().cumsum(dim=1) - is_end_BT.long() > 0
    return ~ended_before_BT
