"""The model in training: its loss on rollouts, through the fused head wherever that is exact."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fgrpo.client.loss_batches import LossBatch
from fgrpo.client.model import base_model, is_adapted, load_model
from fgrpo.client.rollouts import sample
from fgrpo.client.samplers import Sampler, make_sampler
from fgrpo.config import Config, RolloutConfig
from fgrpo.records import Chat, Rollouts
from fgrpo_kernels import GRPOLoss, grpo_loss, linear_grpo_loss, linear_token_logprobs, token_logprobs
from fgrpo_kernels.models.shared_attention import enable_shared_attention
from fgrpo_kernels.models.shared_decoder import can_share_prompts, decoder_inputs
from fgrpo_kernels.shared_prompts import PrefixBatch, share_prompts


@dataclass(frozen=True)
class Policy:
    """A causal language model, its tokenizer, and the frozen starting model if a KL penalty asks for one.

    Attributes:
        plain_head: the logits are exactly `hidden @ weight.T + bias`, so the LM head can be fused with the loss. Models
            that scale or cap their logits, or carry adapters on the head, take the logits' way instead.
        sampler: what draws completions from the model (see `fgrpo.client.samplers`).
        shares_prefixes: in training a prompt can be read once for its whole group (see `fgrpo_kernels.shared_prompts`).
    """

    model: nn.Module
    tokenizer: Any
    plain_head: bool
    sampler: Sampler
    shares_prefixes: bool
    reference: nn.Module | None

    @staticmethod
    def load(config: Config) -> Policy:
        model, tokenizer = load_model(config)
        needs_copy = config.train.beta > 0 and not is_adapted(model)
        reference = copy.deepcopy(model).requires_grad_(False) if needs_copy else None
        shares_prefixes = _share_prefixes(model)  # first, as it may change how the model attends
        return Policy(
            model,
            tokenizer,
            plain_head=_has_plain_head(model),
            sampler=make_sampler(model, config),
            shares_prefixes=shares_prefixes,
            reference=reference,
        )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def sample(self, prompts: Sequence[str | Chat], config: RolloutConfig, seed: int, greedy: bool = False) -> Rollouts:
        """Return completions of prompts, see `fgrpo.client.rollouts.sample`."""
        model = self.model.eval()
        return sample(model, self.tokenizer, prompts, config, seed, greedy=greedy, sampler=self.sampler)

    def states(self, inputs: PrefixBatch) -> Tensor:
        """Return what the loss is computed from: hidden states [R, L, H], or logits [R, L, V] without a plain head."""
        return _hidden(self.model, inputs)[0] if self.plain_head else _logits(self.model, inputs)

    def loss(self, batch: LossBatch, *, states: Tensor | None = None, **options: Any) -> GRPOLoss:
        """Return `fgrpo_kernels.grpo_loss` of a batch; `options` are that function's.

        Args:
            states: what `states` gives for `batch.inputs`, where that is there already.
        """
        rows = batch.inputs.rows(self.states(batch.inputs) if states is None else states)
        terms = (batch.targets_N, batch.advantages_N, batch.weights_N)
        options |= {"old_logp": batch.old_logp_N, "ref_logp": batch.ref_logp_N, "sequence_ids": batch.sequence_ids_N}
        if not self.plain_head:
            return grpo_loss(rows, *terms, **options)
        head = _head(self.model)  # a batch holds no row without signal, so that nobody has to ask the device
        return linear_grpo_loss(rows, head.weight, *terms, bias=head.bias, all_informative=True, **options)

    @torch.no_grad()
    def reference_logp(self, batch: LossBatch, temperature: float) -> Tensor:
        """Return the starting model's log-probabilities of a batch's tokens, float32 [N]."""
        model = self.model if self.reference is None else self.reference
        inputs, targets_N = batch.inputs, batch.targets_N
        with model.disable_adapter() if is_adapted(model) else nullcontext():  # type: ignore[operator]
            if not self.plain_head:
                return token_logprobs(inputs.rows(_logits(model, inputs)), targets_N, temperature=temperature).logp
            hidden_RLH, head = _hidden(model, inputs)
            return linear_token_logprobs(
                inputs.rows(hidden_RLH), head.weight, targets_N, bias=head.bias, temperature=temperature
            ).logp


def _hidden(model: nn.Module, batch: PrefixBatch) -> tuple[Tensor, nn.Linear]:
    """Return the last hidden states [R, L, H], and the LM head."""
    base = base_model(model)
    return base.get_decoder()(**decoder_inputs(batch, base)).last_hidden_state, _head(model)


def _head(model: nn.Module) -> nn.Linear:
    return base_model(model).get_output_embeddings()


def _logits(model: nn.Module, batch: PrefixBatch) -> Tensor:
    """Return the logits [R, L, V]."""
    return model(**decoder_inputs(batch, model)).logits


def _share_prefixes(model: nn.Module) -> bool:
    """Whether the model can; if so, it is made fit for long rows."""
    base = base_model(model)
    if not can_share_prompts(base, lambda inputs: base.get_decoder()(**inputs).last_hidden_state):
        return False
    enable_shared_attention(base)
    return True


# How models scale or cap their logits, by the names that transformers' configurations use. A cap far above the logits
# of the moment does not show in them, so these are asked besides trying.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")


@torch.no_grad()
def _has_plain_head(model: nn.Module) -> bool:
    """Ask the configuration, then try it: compare the logits of a few tokens with hidden @ weight.T + bias."""
    text_config = model.config.get_text_config()  # type: ignore[operator,union-attr]
    if any(getattr(text_config, name, None) not in (None, 1, 1.0) for name in _LOGIT_CHANGES):
        return False
    tokens = torch.linspace(1, text_config.vocab_size - 1, 8).long().tolist()
    (probe,) = share_prompts([tokens[:1]], [tokens[1:]], share=False)
    probe = probe.to(next(model.parameters()).device)
    hidden_RLH, head = _hidden(model, probe)
    if type(head) is not nn.Linear:
        return False
    logits_RLV = _logits(model, probe).float()
    error = (head(hidden_RLH).float() - logits_RLV).abs().max()
    return bool(error <= (1e-4 if hidden_RLH.dtype == torch.float32 else 3e-2) * logits_RLV.abs().max())
