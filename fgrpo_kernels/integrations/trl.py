"""TRL's GRPOTrainer with its LM head, and where that is exact its loss, replaced by this package's ops.

    trainer = FusedGRPOTrainer(model=..., ...)        # instead of GRPOTrainer(model=..., ...)
    trainer = accelerate_trainer(trainer)             # or: an existing one

What changes and what does not: docs/plug_in.md.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import trl
from torch import Tensor, nn
from trl import GRPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from fgrpo_kernels.integrations.trl_step import FusedStep, plan_step
from fgrpo_kernels.models.causal_lm_head import CausalLMHead, check_head
from fgrpo_kernels.models.shared_attention import disable_shared_attention, enable_shared_attention
from fgrpo_kernels.models.shared_decoder import can_share_prompts, decoder_inputs, shared_completions

Metrics = Literal["all", "informative"]
TESTED_TRL = "1.16."
# TRL's own functions between a batch and its loss, before anybody patched the class.
_TRLS = {
    name: getattr(GRPOTrainer, name) for name in ("compute_loss", "_compute_loss", "_get_per_token_logps_and_entropies")
}


class FusedGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` with the fused LM head: the same constructor, and the options of `accelerate_trainer`."""

    def __init__(self, *args: Any, metrics: Metrics = "all", share_prompts: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        accelerate_trainer(self, metrics=metrics, share_prompts=share_prompts)


def accelerate_trainer(trainer: GRPOTrainer, *, metrics: Metrics = "all", share_prompts: bool = False) -> GRPOTrainer:
    """Equip a GRPOTrainer, before or after it has trained; losses, gradients and metrics stay TRL's.

    Args:
        trainer: any GRPOTrainer. One with a loss of its own, in a subclass or patched on, keeps it, and gets the fused
            head only.
        metrics: "all": TRL's metrics, over the tokens that TRL takes. "informative": entropy, KL and clip ratios come
            from the loss's own pass, over the tokens that carry signal, and tokens without any cost nothing; see
            docs/plug_in.md.
        share_prompts: a micro-batch's equal prompts, and equal beginnings of their completions, enter the model once
            (see `fgrpo_kernels.shared_prompts`). A model that cannot be told so takes the padded way, with a warning;
            so does a micro-batch with images or router losses.

    Returns:
        The same trainer. A second call only changes the options; `restore_trainer` undoes the first.

    Raises:
        ImportError: another version of TRL than the tested one.
        TypeError, ValueError: not a GRPOTrainer, an unknown `metrics`, a model or a distributed setting that the fused
            head does not support, by name.
    """
    if not trl.__version__.startswith(TESTED_TRL):
        raise ImportError(f"accelerate_trainer: made for trl {TESTED_TRL}x, found {trl.__version__}")
    if not isinstance(trainer, GRPOTrainer):
        raise TypeError(f"accelerate_trainer: expected a trl.GRPOTrainer, got {type(trainer).__name__}")
    if metrics not in get_args(Metrics):
        raise ValueError(f"accelerate_trainer: metrics must be one of {', '.join(get_args(Metrics))}, got {metrics!r}")
    plug = getattr(trainer, "_fgrpo_plug", None)
    if plug is None:
        _refuse_zero3(trainer)
        plug = _Plug(trainer)
        # Its own loss, if it has one that is no method of its class, goes on behind ours.
        plug.own_loss = vars(trainer).get("_compute_loss")
        vars(trainer).update(_fgrpo_plug=plug, _compute_loss=types.MethodType(_compute_loss, trainer))
    plug.metrics = metrics
    plug.share_prompts(share_prompts)
    plug.enable(True)
    return trainer


def restore_trainer(trainer: GRPOTrainer) -> GRPOTrainer:
    """Switch the plug-in off again: from here on the trainer is TRL's own."""
    plug = getattr(trainer, "_fgrpo_plug", None)
    if plug is not None:
        plug.enable(False)
    return trainer


def _refuse_zero3(trainer: Any) -> None:
    plugin = trainer.accelerator.state.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        raise ValueError(
            "accelerate_trainer: DeepSpeed ZeRO-3 takes the LM head's weight apart between the forward and the "
            "backward pass, where the fused head needs it whole; use ZeRO-2, or FSDP, or TRL without the plug-in"
        )


class _Plug:
    """What a trainer has been equipped with: a fused head for the policy and for the reference model."""

    metrics: Metrics
    own_loss: Callable[..., Tensor] | None = None

    def __init__(self, trainer: Any) -> None:
        in_float32 = trainer.args.cast_lm_head_to_fp32
        models = [_plain_model(m) for m in (trainer.model, trainer.ref_model) if m is not None]
        heads = [CausalLMHead.of(model, trainer.temperature, in_float32) for model in models]
        for model, head in zip(models, heads, strict=True):
            check_head(model, head)
        self.policy, *self._others = [_FusedForward(m, h) for m, h in zip(models, heads, strict=True)]

    def enable(self, on: bool) -> None:
        for forward in (self.policy, *self._others):
            forward.enabled = on

    def share_prompts(self, on: bool) -> None:
        for forward in (self.policy, *self._others):
            forward.share_prompts(on)

    def takes_trls_loss(self, trainer: Any) -> bool:
        """Nobody has put a loss of their own in TRL's place: not in a subclass, and not by a patch since."""
        functions = {name: getattr(getattr(trainer, name), "__func__", None) for name in _TRLS}
        functions["_compute_loss"] = type(trainer)._compute_loss if self.own_loss is None else self.own_loss
        return functions == _TRLS


def _plain_model(model: Any) -> Any:
    """The transformers model inside compilers', accelerate's and peft's wrappers."""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif not hasattr(model, "get_output_embeddings") and isinstance(getattr(model, "module", None), nn.Module):
            model = model.module
        else:
            return model


class _FusedForward:
    """The `forward` of a model that TRL has given its own fused head.

    TRL calls `model(..., labels=labels, fused_lm_head=True)` and reads log-probabilities and entropies. Everything runs
    inside the model's forward, so that DDP and FSDP see what they expect, and every other call is TRL's.
    """

    def __init__(self, model: Any, head: CausalLMHead) -> None:
        self.head = head
        self.enabled = self.shares_prompts = False
        self.step: FusedStep | None = None
        self._model = model
        trl_forward = model.forward

        @functools.wraps(type(model).forward)  # `generate` reads the signature
        def forward(
            module: Any, *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any
        ) -> Any:
            for_others = {"shift_labels", "num_items_in_batch"} & kwargs.keys()  # calls that GRPO does not make
            if not (fused_lm_head and self.enabled) or labels is None or for_others:
                extra = {"labels": labels} if labels is not None else {}
                return trl_forward(*args, **({"fused_lm_head": True} if fused_lm_head else {}), **extra, **kwargs)
            return self._scores(module, labels, *args, **kwargs)

        model.forward = types.MethodType(forward, model)

    def share_prompts(self, on: bool) -> None:
        """Have prompts computed once a group, if the model can."""
        model = self._model
        disable_shared_attention(model)
        self.shares_prompts = on and can_share_prompts(model, lambda inputs: model.base_model(**inputs)[0])
        if self.shares_prompts:
            enable_shared_attention(model)
        elif on:
            warnings.warn(
                f"share_prompts: {type(model).__name__} with {model.config._attn_implementation} attention does not "
                "give the same hidden states for sequences that share a prompt; they are computed one by one",
                stacklevel=2,
            )

    def _scores(self, model: Any, labels: Tensor, *args: Any, **kwargs: Any) -> FusedCausalLMOutput:
        config = model.config.get_text_config()
        if getattr(config, "output_router_logits", False):
            kwargs.setdefault("output_router_logits", True)
        shared = None
        if self.shares_prompts and not args and kwargs.keys() == {"input_ids", "attention_mask"}:
            shared = shared_completions(kwargs["input_ids"], kwargs["attention_mask"], labels)
        if shared is not None:  # the rest sees the completions alone, which is all that TRL reads
            batch, targets = shared
            outputs = model.base_model(**decoder_inputs(batch, model))
            hidden = batch.padded_rows(outputs.last_hidden_state, tuple(targets.shape))
        else:
            outputs = model.base_model(*args, **kwargs | {"use_cache": False})
            hidden, targets = outputs.last_hidden_state[:, :-1], labels[:, 1:]
        if self.step is not None:
            return FusedCausalLMOutput(log_probs=self.step.run(self.head, model, hidden, targets))
        mask = targets != -100
        logp, entropy = self.head.token_logprobs(model, hidden, targets, mask)
        loss, aux_loss = -logp.sum() / mask.sum().clamp(min=1), None
        if kwargs.get("output_router_logits"):
            aux_loss = _load_balancing_loss(config, outputs.router_logits, kwargs.get("attention_mask"))
            loss = loss + getattr(config, "router_aux_loss_coef", 0.0) * aux_loss
        return FusedCausalLMOutput(loss=loss, log_probs=logp, entropy=entropy, label_mask=mask, aux_loss=aux_loss)


def _load_balancing_loss(config: Any, router_logits: Any, attention_mask: Tensor | None) -> Tensor:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    loss = load_balancing_loss_func(router_logits, config.num_experts, config.num_experts_per_tok, attention_mask)
    assert isinstance(loss, Tensor), "a model with experts has router logits"
    return loss


def _compute_loss(self: Any, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """In place of `GRPOTrainer._compute_loss`: that itself, or loss and gradient in one pass through the LM head."""
    plug: _Plug = self._fgrpo_plug
    step = None
    if plug.policy.enabled and plug.takes_trls_loss(self) and torch.is_grad_enabled():
        step = plan_step(self, inputs, informative_only=plug.metrics == "informative")
    if step is None:
        own_loss = plug.own_loss or functools.partial(type(self)._compute_loss, self)
        loss: Tensor = own_loss(model, inputs)
        return loss
    plug.policy.step = step
    try:
        return step.loss(model)
    finally:
        plug.policy.step = None
