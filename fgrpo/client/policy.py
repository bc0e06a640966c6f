"""The model in training: its loss on rollouts, through the fused head wherever that is exact."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fgrpo.client.model import is_adapted, load_model
from fgrpo.client.rollouts import can_share_prompts, sample
from fgrpo.config import Config, RolloutConfig
from fgrpo.records import Chat, Rollouts
from fgrpo_kernels import GRPOLoss, TokenLogprobs, grpo_loss, linear_grpo_loss, linear_token_logprobs, token_logprobs


@dataclass(frozen=True)
class Policy:
    """A causal language model, its tokenizer, and the frozen starting model if a KL penalty asks for one.

    Attributes:
        plain_head: the logits are exactly `hidden @ weight.T + bias`, so the LM head can be fused with the loss. Models
            that scale or cap their logits, or carry adapters on the head, take the logits' way instead.
        shares_prompts: a prompt can be read once for its whole group (see `fgrpo.client.rollouts`).
    """

    model: nn.Module
    tokenizer: Any
    plain_head: bool
    shares_prompts: bool
    reference: nn.Module | None

    @staticmethod
    def load(config: Config) -> Policy:
        model, tokenizer = load_model(config)
        needs_copy = config.train.beta > 0 and not is_adapted(model)
        reference = copy.deepcopy(model).requires_grad_(False) if needs_copy else None
        return Policy(model, tokenizer, _has_plain_head(model), can_share_prompts(model, tokenizer), reference)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def sample(self, prompts: Sequence[str | Chat], config: RolloutConfig, seed: int, greedy: bool = False) -> Rollouts:
        """Return completions of prompts, see `fgrpo.client.rollouts.sample`."""
        model = self.model.eval()
        return sample(model, self.tokenizer, prompts, config, seed, greedy=greedy, share_prompts=self.shares_prompts)

    def loss(self, rollouts: Rollouts, advantages_B: Tensor, weights_BT: Tensor, **options: Any) -> GRPOLoss:
        """Return `fgrpo_kernels.grpo_loss` of the completions; `options` are that function's."""
        targets_BT = rollouts.tokens_BL[:, rollouts.prompt_length :]
        if not self.plain_head:
            logits_BTV = _completion_logits(self.model, rollouts)
            return grpo_loss(logits_BTV, targets_BT, advantages_B, weights_BT, **options)
        hidden_BTH, head = _completion_hidden(self.model, rollouts)
        return linear_grpo_loss(
            hidden_BTH, head.weight, targets_BT, advantages_B, weights_BT, bias=head.bias, **options
        )

    @torch.no_grad()
    def reference_logp(self, rollouts: Rollouts, temperature: float) -> Tensor:
        """Return the starting model's log-probabilities of the completions, float32 [B, T]."""
        targets_BT = rollouts.tokens_BL[:, rollouts.prompt_length :]
        model = self.model if self.reference is None else self.reference
        with model.disable_adapter() if is_adapted(model) else nullcontext():  # type: ignore[operator]
            return self._logprobs(model, rollouts, targets_BT, temperature).logp

    def _logprobs(self, model: nn.Module, rollouts: Rollouts, targets_BT: Tensor, temperature: float) -> TokenLogprobs:
        if not self.plain_head:
            return token_logprobs(_completion_logits(model, rollouts), targets_BT, temperature=temperature)
        hidden_BTH, head = _completion_hidden(model, rollouts)
        return linear_token_logprobs(hidden_BTH, head.weight, targets_BT, bias=head.bias, temperature=temperature)


def _model_inputs(rollouts: Rollouts) -> dict[str, Any]:
    # Padding is on the left: positions count real tokens, as `generate` counts them.
    positions_BL = (rollouts.attention_BL.cumsum(dim=1) - 1).clamp_min(0)
    return {
        "input_ids": rollouts.tokens_BL,
        "attention_mask": rollouts.attention_BL,
        "position_ids": positions_BL,
        "use_cache": False,
    }


def _completion_hidden(model: nn.Module, rollouts: Rollouts) -> tuple[Tensor, nn.Linear]:
    """Return the hidden states [B, T, H] that predict the completions' tokens, and the LM head."""
    base: Any = model.get_base_model() if is_adapted(model) else model  # type: ignore[operator]
    hidden_BLH = base.get_decoder()(**_model_inputs(rollouts)).last_hidden_state
    return hidden_BLH[:, rollouts.prompt_length - 1 : -1], base.get_output_embeddings()


def _completion_logits(model: nn.Module, rollouts: Rollouts) -> Tensor:
    """Return the logits [B, T, V] that predict the completions' tokens."""
    kept = rollouts.mask_BT.shape[1] + 1
    return model(**_model_inputs(rollouts), logits_to_keep=kept).logits[:, -kept:-1]


# How models scale or cap their logits, by the names that transformers' configurations use. A cap far above the logits
# of the moment does not show in them, so these are asked besides trying.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")


@torch.no_grad()
def _has_plain_head(model: nn.Module) -> bool:
    """Ask the configuration, then try it: compare the logits of a few tokens with hidden @ weight.T + bias."""
    text_config = model.config.get_text_config()  # type: ignore[operator,union-attr]
    if any(getattr(text_config, name, None) not in (None, 1, 1.0) for name in _LOGIT_CHANGES):
        return False
    device = next(model.parameters()).device
    tokens_BL = torch.linspace(1, text_config.vocab_size - 1, 8, device=device).long()[None]
    ones_BT = torch.ones_like(tokens_BL[:, 1:])
    probe = Rollouts(tokens_BL, torch.ones_like(tokens_BL), ones_BT.bool(), ones_BT.float(), ("",))
    hidden_BTH, head = _completion_hidden(model, probe)
    if type(head) is not nn.Linear:
        return False
    logits_BTV = _completion_logits(model, probe).float()
    error = (head(hidden_BTH).float() - logits_BTV).abs().max()
    return bool(error <= (1e-4 if hidden_BTH.dtype == torch.float32 else 3e-2) * logits_BTV.abs().max())
