"""Sampling completions with the model's own `generate`, and recording with which probability each token was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from fgrpo.client.prompts import render
from fgrpo.config import RolloutConfig
from fgrpo.errors import TrainingError
from fgrpo.records import Chat, Rollouts
from fgrpo.seeds import seeded


class _SampledLogprobs(LogitsProcessor):
    """Notes the log-probability of every sampled token while `generate` runs.

    A processor sees step t's logits before the token is drawn, and the token one call later, as the last of
    `input_ids`. So it keeps one step's log-probabilities [B, V], never those of all steps.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._pending_BV: Tensor | None = None
        self._taken: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._take(input_ids)
        self._pending_BV = torch.log_softmax(scores.float() / self._temperature, dim=-1)
        if self._pending_BV.isnan().any():
            raise TrainingError("the model's logits are not numbers any more; training diverged, is train.lr too high?")
        return scores

    def finish(self, sequences_BL: Tensor) -> Tensor:
        """Return the log-probabilities [B, T] of all sampled tokens."""
        self._take(sequences_BL)
        return torch.cat(self._taken, dim=1)

    def _take(self, input_ids: Tensor) -> None:
        if self._pending_BV is not None:
            self._taken.append(self._pending_BV.gather(1, input_ids[:, -1:]))


def sample(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str | Chat],
    config: RolloutConfig,
    seed: int,
    *,
    greedy: bool = False,
    share_prompts: bool = True,
) -> Rollouts:
    """Sample `config.group_size` completions of every prompt, neighbours in the batch; or one each, greedily.

    Args:
        prompts: texts or chats, before the chat template.
        seed: decides the samples; the global random state is left as it was.
        share_prompts: read a prompt once for its whole group, not once per completion; see `can_share_prompts`.
    """
    device = next(model.parameters()).device
    texts = [render(tokenizer, prompt, config.system_prompt) for prompt in prompts]
    encoded = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=tokenizer.chat_template is None)
    encoded = encoded.to(device)
    group_size = 1 if greedy else config.group_size
    prompt_BL = encoded["input_ids"].repeat_interleave(group_size, dim=0)
    prompt_mask_BL = encoded["attention_mask"].repeat_interleave(group_size, dim=0)
    recorder = _SampledLogprobs(config.temperature)
    # top_k and top_p are switched off: the recorded log-probability is that of the whole distribution.
    choice = {"temperature": config.temperature, "top_k": 0, "top_p": 1.0} if not greedy else {}
    end_ids = end_token_ids(model, tokenizer)
    with seeded(device, seed), torch.no_grad():
        cache = None
        if share_prompts and group_size > 1 and encoded["input_ids"].shape[1] > 1:
            cache = _group_cache(model, encoded["input_ids"], encoded["attention_mask"], group_size)
        tokens_BL = model.generate(  # type: ignore[operator]
            input_ids=prompt_BL,
            attention_mask=prompt_mask_BL,
            max_new_tokens=config.max_new_tokens,
            logits_processor=LogitsProcessorList([recorder]),
            past_key_values=cache,
            do_sample=not greedy,
            repetition_penalty=1.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=end_ids or None,
            **choice,
        )
        old_logp_BT = recorder.finish(tokens_BL)
    completion_BT = tokens_BL[:, prompt_BL.shape[1] :]
    mask_BT = completion_mask(completion_BT, end_ids)
    return Rollouts(
        tokens_BL=tokens_BL,
        attention_BL=torch.cat([prompt_mask_BL, mask_BT.long()], dim=1),
        mask_BT=mask_BT,
        old_logp_BT=old_logp_BT.masked_fill(~mask_BT, 0.0),
        completions=tuple(tokenizer.batch_decode(completion_BT.where(mask_BT, tokenizer.pad_token_id), True)),
    )


def can_share_prompts(model: nn.Module, tokenizer: Any) -> bool:
    """Try it: whether a cache of the prompts, repeated for the group, gives the same samples as reading them anew.

    It does not for models whose cache is of another kind (recurrent states), or whose positions come from its length.
    """
    prompts, config = ["1 + 1", "What is 1 + 1? Say it."], RolloutConfig(group_size=2, max_new_tokens=2)
    apart = sample(model, tokenizer, prompts, config, seed=0, share_prompts=False)
    try:
        shared = sample(model, tokenizer, prompts, config, seed=0, share_prompts=True)
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError):  # a cache that does not simply repeat
        return False
    if not torch.equal(apart.tokens_BL, shared.tokens_BL):
        return False
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1
    return torch.allclose(apart.old_logp_BT, shared.old_logp_BT, atol=tolerance)


def _group_cache(model: nn.Module, prompt_PL: Tensor, mask_PL: Tensor, group_size: int) -> DynamicCache:
    """Return a cache of the P prompts but for their last token, repeated for every member of the group."""
    positions_PL = (mask_PL.cumsum(dim=1) - 1).clamp_min(0)
    cache = model(
        input_ids=prompt_PL[:, :-1],
        attention_mask=mask_PL[:, :-1],
        position_ids=positions_PL[:, :-1],
        use_cache=True,
        logits_to_keep=1,
    ).past_key_values
    cache.batch_repeat_interleave(group_size)
    return cache


def end_token_ids(model: nn.Module, tokenizer: Any) -> list[int]:
    """Return every token that ends a completion: the model's own list where it has one, else the tokenizer's."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = tokenizer.eos_token_id if ids is None else ids
    ids = ids if isinstance(ids, (list, tuple)) else [ids]
    return [i for i in ids if i is not None]


def completion_mask(completion_BT: Tensor, end_ids: Sequence[int]) -> Tensor:
    """True up to and including the first end-of-sequence token; what `generate` pads after it is False."""
    ends = torch.tensor(list(end_ids), dtype=completion_BT.dtype, device=completion_BT.device)
    is_end_BT = torch.isin(completion_BT, ends)
    ended_before_BT = is_end_BT.long().cumsum(dim=1) - is_end_BT.long() > 0
    return ~ended_before_BT
