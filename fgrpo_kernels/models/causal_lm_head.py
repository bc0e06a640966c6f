"""The LM head of a transformers model as the fused ops see it: read from the model, then tried on a few tokens.

B sequences   T tokens   H hidden size   V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fgrpo_kernels import GRPOLoss, TokenLogprobs, linear_grpo_loss, linear_token_logprobs
from fgrpo_kernels.models.shared_decoder import evaluating

# Multipliers of the logits, by the names that transformers' configurations have for them.
_MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier")


@dataclass(frozen=True)
class CausalLMHead:
    """`logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap) / temperature`.

    Weight and bias are looked up in the model at every call: adapters and sharding replace them.

    Attributes:
        softcap: None where the model has none.
        in_float32: the head works in float32 whatever the rest does.
    """

    temperature: float
    scale: float = 1.0
    softcap: float | None = None
    in_float32: bool = False

    @staticmethod
    def of(model: Any, temperature: float, in_float32: bool = False) -> CausalLMHead:
        """Read scale and softcap from the model's configuration."""
        config = model.config.get_text_config()
        scale = next((x for name in _MULTIPLIERS if (x := getattr(config, name, None)) is not None), None)
        if scale is None:
            scale = getattr(config, "logits_scaling", None) or 1.0
            if config.model_type != "hyperclovax":  # which multiplies by it; the others divide
                scale = 1 / scale
        if not scale > 0:
            raise ValueError(f"{type(model).__name__}: logits multiplied by {scale} have no fused form")
        return CausalLMHead(temperature, scale, getattr(config, "final_logit_softcapping", None), in_float32)

    # Rows are chosen by their values, which a compiled graph cannot hold: it ends at the hidden states.
    @torch.compiler.disable
    def token_logprobs(self, model: Any, hidden: Tensor, targets: Tensor, row_mask: Tensor) -> TokenLogprobs:
        """`linear_token_logprobs` of hidden states `[B, T, H]`; rows outside the mask are 0."""
        head = model.get_output_embeddings()
        hidden, weight, options = self._arguments(head, hidden)
        return linear_token_logprobs(hidden, weight, targets.to(hidden.device), row_mask=row_mask, **options)

    @torch.compiler.disable
    def grpo_loss(self, model: Any, hidden: Tensor, targets: Tensor, **terms: Any) -> GRPOLoss:
        """`linear_grpo_loss` of hidden states `[B, T, H]`; `terms` are that function's."""
        head = model.get_output_embeddings()
        hidden, weight, options = self._arguments(head, hidden)
        return linear_grpo_loss(hidden, weight, targets.to(hidden.device), **options | terms)

    def _arguments(self, head: Any, hidden: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        weight, bias = (_whole(x) for x in (head.weight, getattr(head, "bias", None)))
        assert weight is not None, "a head has a weight"
        hidden = hidden.to(weight.device)  # a model split over devices may end on another one
        options: dict[str, Any] = {"bias": bias, "temperature": self.temperature}
        if self.in_float32:
            options["head_dtype"] = torch.float32
        elif not torch.is_autocast_enabled(hidden.device.type):
            options["head_dtype"] = hidden.dtype
        if self.softcap is not None:
            options |= {"logit_softcap": self.softcap, "logit_scale": self.scale}
        else:
            options["temperature"] = self.temperature / self.scale
        return hidden, weight, options


def _whole(parameter: Tensor | None) -> Tensor | None:
    """A parameter that FSDP2 has sharded, gathered."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


@torch.no_grad()
def check_head(model: Any, head: CausalLMHead) -> None:
    """Compare the fused head with the model's own logits on a few tokens.

    Args:
        model: a causal language model of transformers, without wrappers.

    Raises:
        ValueError: they differ, or the head is none that the ops can take: the message says what was found.
    """
    name = type(model).__name__
    lm_head = model.get_output_embeddings()
    weight = getattr(lm_head, "weight", None)
    if weight is None or not weight.is_floating_point():
        raise ValueError(
            f"{name}: its output embedding is {type(lm_head).__name__} with weight "
            f"{'missing' if weight is None else weight.dtype}; the fused head needs a floating-point matrix. "
            "Leave lm_head out of the quantisation."
        )
    vocab_size = min(model.config.get_text_config().vocab_size, len(weight))
    device = model.get_input_embeddings().weight.device
    tokens = torch.linspace(1, vocab_size - 1, 8, device=device).long()[None]
    seen: dict[str, Any] = {}  # accelerate wraps a model's forward into autocast, so the precision is known inside only

    def look(_: Any, __: Any, outputs: Any) -> None:
        seen["hidden"] = outputs.last_hidden_state[:, :-1]
        seen["dtype"] = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None

    hook = model.base_model.register_forward_hook(look)
    try:
        with evaluating(model):
            logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float() / head.temperature
    finally:
        hook.remove()
    targets = tokens[:, 1:]
    with torch.autocast(device.type, dtype=seen["dtype"], enabled=seen["dtype"] is not None):
        ours = head.token_logprobs(model, seen["hidden"], targets, torch.ones_like(targets)).logp
    theirs = logits.log_softmax(-1).gather(-1, targets.to(logits.device)[..., None]).squeeze(-1).to(ours.device)
    error = (ours - theirs).abs().max().item()
    if (seen["dtype"] or seen["hidden"].dtype) == torch.float32:
        tolerance = 1e-4 * max(1.0, theirs.abs().max().item())
    else:  # two logits enter a log-probability, each rounded to 16 bits once here and once there
        tolerance = 2**-7 * max(1.0, logits.abs().max().item())
    if not error <= tolerance:
        raise ValueError(
            f"{name}: the fused head does not give this model's logits: log-probabilities differ by {error:.3g} nats "
            f"(tolerance {tolerance:.3g}), with scale {head.scale}, softcap {head.softcap} and a "
            f"{type(lm_head).__name__} as head. Does its forward change the hidden states or the logits in another way?"
        )
