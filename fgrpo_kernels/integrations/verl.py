"""This package's objectives and fused LM head in verl.

    actor_rollout_ref.model.external_lib=fgrpo_kernels.integrations.verl_install     # on verl's command line

makes every worker call `install()`. Then `actor_rollout_ref.actor.policy_loss.loss_mode` may be one of
`fgrpo_ppo`, `fgrpo_gspo`, `fgrpo_cispo`, `fgrpo_sapo`, `fgrpo_gmpo`, `fgrpo_vespo`, and
`actor_rollout_ref.model.use_fused_kernels=True` with verl's "torch" backend takes the fused head.
What changes and what does not: docs/plug_in.md.

B sequences   T completion tokens   N = B * T rows
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fgrpo_kernels import CISPO, GMPO, SAPO, VESPO, Objective, PPOClip, linear_token_logprobs, token_weights
from fgrpo_kernels.objectives.base import Tokens, bounded_exp
from fgrpo_kernels.token_weights import Reduction

TESTED_VERL = "0.9."
# verl's loss_agg_mode as a reduction here; "token-sum" is a token mean over one token.
_REDUCTIONS: dict[str, Reduction] = {
    "token-mean": "dapo",
    "token-sum": "dapo",
    "seq-mean-token-sum": "luspo",
    "seq-mean-token-sum-norm": "dr_grpo",
    "seq-mean-token-mean": "grpo",
}

PolicyLoss = Callable[..., tuple[Tensor, dict[str, Any]]]


def _ppo(config: Any) -> Objective:
    low, high = _clip(config)
    cap = config.get("clip_ratio_c", 3.0)
    if cap < 1 + high:
        raise ValueError(
            f"fgrpo_ppo: clip_ratio_c = {cap} is below 1 + clip_ratio_high = {1 + high}, where PPOClip's delta and "
            "verl's bound are not the same; raise it or use loss_mode=vanilla"
        )
    return PPOClip(low, high, delta=cap)


def _gspo(config: Any) -> Objective:
    low, high = _clip(config)
    return PPOClip(low, high, level="sequence")


def _cispo(config: Any) -> Objective:
    low, high = _clip(config)
    return CISPO(1 - low, 1 + high)


def _sapo(config: Any) -> Objective:
    return SAPO(config.tau_pos, config.tau_neg)


def _gmpo(config: Any) -> Objective:
    low, high = _clip(config)
    return GMPO(low, high)


def _vespo(config: Any) -> Objective:
    return VESPO()


def _clip(config: Any) -> tuple[float, float]:
    low, high = config.clip_ratio_low, config.clip_ratio_high
    return config.clip_ratio if low is None else low, config.clip_ratio if high is None else high


_OBJECTIVES: dict[str, Callable[[Any], Objective]] = {
    "fgrpo_ppo": _ppo,
    "fgrpo_gspo": _gspo,
    "fgrpo_cispo": _cispo,
    "fgrpo_sapo": _sapo,
    "fgrpo_gmpo": _gmpo,
    "fgrpo_vespo": _vespo,
}


def policy_loss(name: str) -> PolicyLoss:
    """A policy loss with the signature of verl's registry.

    Args:
        name: one of the six loss modes above.

    Returns:
        A function of `old_log_prob`, `log_prob`, `advantages`, `response_mask` (all `[B, T]`), `loss_agg_mode`,
        `config` (verl's ActorConfig) and `rollout_is_weights` (`[B, T]` or None), which gives the loss, 0-d, and
        verl's metrics `actor/pg_clipfrac`, `actor/pg_clipfrac_lower` and `actor/ppo_kl`.

    Raises:
        ValueError: an unknown name. The function raises it for an unknown `loss_agg_mode`, for a missing `config`, and
            for options that the objective cannot have, by name.
    """
    if name not in _OBJECTIVES:
        raise ValueError(f"policy_loss: name must be one of {', '.join(_OBJECTIVES)}, got {name!r}")

    def compute_policy_loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        if config is None:
            raise ValueError(f"{name}: needs verl's actor configuration, got config=None")
        if rollout_is_weights is not None and name == "fgrpo_vespo":
            raise ValueError(
                "fgrpo_vespo: rollout_is_weights belong inside VESPO's sequence weight and cannot be a factor; "
                "take the rollout's log-probabilities as old_log_prob (verl's bypass mode) and switch them off"
            )
        objective = _OBJECTIVES[name](config)
        mask_BT = response_mask != 0
        weights_BT = _weights(mask_BT, loss_agg_mode, **config.global_batch_info)
        tokens = _tokens(log_prob, old_log_prob, advantages, mask_BT)
        loss_BT = objective.loss(tokens).view(log_prob.shape)
        if rollout_is_weights is not None:
            loss_BT = loss_BT * rollout_is_weights
        loss = torch.where(mask_BT, weights_BT * loss_BT, 0.0).sum()
        return loss, _metrics(objective, tokens)

    compute_policy_loss.__name__ = f"compute_policy_loss_{name}"
    return compute_policy_loss


def _tokens(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, mask_BT: Tensor) -> Tokens:
    """Rows as the objectives take them; what the mask leaves out is neutral, whatever it holds."""
    B, T = mask_BT.shape
    logp, old_logp, advantages = (torch.where(mask_BT, x, 0.0) for x in (log_prob, old_log_prob, advantages))
    return Tokens(
        logp_N=logp.float().reshape(-1),
        old_logp_N=old_logp.float().reshape(-1),
        advantages_N=advantages.float().reshape(-1),
        mask_N=mask_BT.reshape(-1),
        sequence_ids_N=torch.arange(B, device=log_prob.device).repeat_interleave(T),
        num_sequences=B,
    )


def _weights(
    mask_BT: Tensor,
    mode: str,
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: int | None = None,
) -> Tensor:
    """`[B, T]`: verl's `agg_loss` as weights, for gradients that are averaged over `dp_size` workers."""
    if mode not in _REDUCTIONS:
        raise ValueError(f"loss_agg_mode must be one of {', '.join(_REDUCTIONS)}, got {mode!r}")
    if dp_size > 1 and mode != "token-sum":
        name, whole = ("batch_num_tokens", batch_num_tokens)
        if mode != "token-mean":
            name, whole = ("global_batch_size", global_batch_size)
        if whole is None:
            raise ValueError(f"loss_agg_mode={mode} over dp_size={dp_size} workers needs {name}")
    num_tokens = 1 if mode == "token-sum" else batch_num_tokens
    weights_BT = token_weights(
        mask_BT,
        _REDUCTIONS[mode],
        num_tokens=mask_BT.sum().clamp(min=1) if num_tokens is None else num_tokens,
        num_sequences=mask_BT.any(1).sum().clamp(min=1) if global_batch_size is None else global_batch_size,
        max_length=loss_scale_factor,
    )
    return weights_BT * dp_size


@torch.no_grad()
def _metrics(objective: Objective, tokens: Tokens) -> dict[str, Any]:
    """verl's names: shares of the masked tokens, and the mean of `old - new` in nats."""
    mask_N = tokens.mask_N
    assert mask_N is not None, "every loss here gives its mask"
    count = mask_N.sum().clamp(min=1)

    def mean(x_N: Tensor) -> float:
        return (torch.where(mask_N, x_N.float(), 0.0).sum() / count).item()

    clipped_N, lower_N = _clipped(objective, tokens)
    return {
        "actor/pg_clipfrac": mean(clipped_N),
        "actor/ppo_kl": mean(tokens.old_logp_N - tokens.logp_N),
        "actor/pg_clipfrac_lower": mean(lower_N),
    }


def _clipped(objective: Objective, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Two bool `[N]`: the tokens that verl's loss counts in `pg_clipfrac`, and in `pg_clipfrac_lower`."""
    positive_N, negative_N = tokens.advantages_N > 0, tokens.advantages_N < 0
    if isinstance(objective, GMPO):  # all outside the bounds, also where the advantage's sign lets them through
        log_ratio_N = tokens.log_ratio("token")
        outside_N = (log_ratio_N < -objective.low) | (log_ratio_N > objective.high)
        return outside_N & positive_N, outside_N & negative_N
    if isinstance(objective, CISPO):  # the same, whatever the advantage
        ratio_N = bounded_exp(objective.log_ratio(tokens))
        return (ratio_N < objective.low) | (ratio_N > objective.high), torch.zeros_like(negative_N)
    low_N, high_N = objective.clipped(tokens)
    capped_N = torch.zeros_like(negative_N)
    if isinstance(objective, PPOClip) and objective.delta is not None:
        capped_N = (bounded_exp(objective.log_ratio(tokens)) > objective.delta) & negative_N
    return low_N | high_N, capped_N


class FusedLinearForPPO(nn.Module):
    """In place of verl's class of this name: log-probabilities and entropies from hidden states, without logits.

    `chunk_size` is taken for verl's sake; the op chooses its own blocks. Of `impl_backend` it is "torch".
    """

    def __init__(self, chunk_size: int = 512, impl_backend: str = "torch") -> None:
        super().__init__()
        if impl_backend != "torch":
            raise ValueError(
                f"FusedLinearForPPO: fgrpo_kernels takes the place of impl_backend='torch', got {impl_backend!r}; "
                "choose that one, or leave fgrpo_kernels.integrations.verl_install out"
            )

    def forward(
        self, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Hidden states `[..., H]`, weights `[V, H]`, the tokens that follow `[...]`: two float32 tensors `[...]`."""
        if not isinstance(temperature, float | int):
            raise ValueError(
                f"FusedLinearForPPO: temperature must be one number, got {type(temperature).__name__}; "
                "set use_fused_kernels=False for temperatures by sample"
            )
        logp, entropy = linear_token_logprobs(hidden_states, vocab_weights, input_ids.long(), temperature=temperature)
        return logp, entropy


def install() -> None:
    """Register the policy losses with verl and put the fused head in place of its "torch" backend's.

    Calling it again changes nothing. `uninstall` takes both back.

    Raises:
        ImportError: verl is not there, or is not of the version that has been checked against.
    """
    core_algos, torch_functional = _verl_modules()
    for name in _OBJECTIVES:
        core_algos.register_policy_loss(name)(policy_loss(name))
    if torch_functional.FusedLinearForPPO is not FusedLinearForPPO:
        torch_functional._fgrpo_replaced = torch_functional.FusedLinearForPPO
        torch_functional.FusedLinearForPPO = FusedLinearForPPO


def uninstall() -> None:
    """Undo `install`."""
    core_algos, torch_functional = _verl_modules()
    for name in _OBJECTIVES:
        core_algos.POLICY_LOSS_REGISTRY.pop(name, None)
    torch_functional.FusedLinearForPPO = torch_functional.__dict__.pop(
        "_fgrpo_replaced", torch_functional.FusedLinearForPPO
    )


def _verl_modules() -> tuple[Any, Any]:
    import verl
    from verl.trainer.ppo import core_algos
    from verl.utils.experimental import torch_functional

    if not verl.__version__.startswith(TESTED_VERL):
        raise ImportError(f"fgrpo_kernels.integrations.verl: made for verl {TESTED_VERL}x, found {verl.__version__}")
    return core_algos, torch_functional
