"""Running the decoder of a transformers model on a `PrefixBatch`: what it takes as inputs, and whether it can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fgrpo_kernels.models import shared_attention
from fgrpo_kernels.models.shared_attention import SHARED_ATTENTION, compact_mask
from fgrpo_kernels.shared_prompts import PrefixBatch, share_padded_prompts, share_prompts

# Between what other rounding and what a wrong mask was seen to do; docs/log.md.
_ROUNDINGS = 3
_LAYERS = {"full_attention", "sliding_attention"}  # the kinds of attention that a mask describes


def decoder_inputs(batch: PrefixBatch, model: Any) -> dict[str, Any]:
    """Return the keyword arguments of a decoder's forward.

    Args:
        batch: on the model's device.
        model: a causal language model of transformers, or its decoder; its configuration says how it attends.
    """
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    if batch.is_chain:
        return inputs | {"attention_mask": batch.padding_mask()}
    config = model.config.get_text_config()
    window, layers = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or ())
    if window is None or layers == {"full_attention"}:
        return inputs | {"attention_mask": _mask(batch, model, None)}
    if len(layers) <= 1:  # all layers have the window
        return inputs | {"attention_mask": _mask(batch, model, window)}
    masks = {"full_attention": _mask(batch, model, None), "sliding_attention": _mask(batch, model, window)}
    return inputs | {"attention_mask": masks}


@torch.compiler.disable
def shared_completions(input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[PrefixBatch, Tensor] | None:
    """Arrange padded rows `[B, L]`, prompts on the left and completions on the right, so that they share prompts.

    Positions are columns, as in models that are given none.

    Args:
        labels: `[B, L]`, -100 up to the column in which completions begin.

    Returns:
        The batch and the labels `[B, T]` of the completions; None if there is no completion.
    """
    predicted_L = (labels != -100).any(dim=0)
    start = int(predicted_L.int().argmax())
    if start == 0:
        return None
    parts = [x[:, columns] for columns in (slice(start), slice(start, None)) for x in (input_ids, attention_mask)]
    batches = share_padded_prompts(*parts, count_padding=True)
    return (batches[0], labels[:, start:]) if batches else None


def _mask(batch: PrefixBatch, model: Any, window: int | None) -> Any:
    attention, length = model.config._attn_implementation, batch.input_ids.shape[1]
    if attention == SHARED_ATTENTION and length >= shared_attention.MIN_LENGTH:
        return compact_mask(batch)
    if attention == "flex_attention":
        return batch.block_mask(window)
    device = batch.input_ids.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    return batch.additive_mask(dtype, window)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards for every module the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def rounding_anew(model: nn.Module) -> Iterator[None]:
    """Every innermost module's output is off by up to half a unit in its last place, at random and always the same."""
    generator = torch.Generator().manual_seed(0)

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        off = torch.rand(output.shape, generator=generator, device="cpu").sub_(0.5).mul_(torch.finfo(output.dtype).eps)
        return (output.float() * off.add_(1).to(output.device)).to(output.dtype)

    hooks = [module.register_forward_hook(hook) for module in model.modules() if next(module.children(), None) is None]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


@torch.no_grad()
def can_share_prompts(model: Any, hidden_states: Callable[[dict[str, Any]], Tensor]) -> bool:
    """Try it: whether a few sequences give the same hidden states in a shared row as each in its own.

    They do not in models with recurrent layers, with positions that follow from the mask (ALiBi), or with an attention
    that takes no mask of its own. In 16 bits "the same" is a matter of the model: rounding anew moves the states of a
    small one by 1%, of a deep or steep one by 10%, as `rounding_anew` finds out.

    Args:
        model: a causal language model of transformers.
        hidden_states: runs its decoder on `decoder_inputs`, and returns `[R, L, H]`.
    """
    config = model.config.get_text_config()
    if not set(getattr(config, "layer_types", None) or ()) <= _LAYERS:
        return False
    window = getattr(config, "sliding_window", None) or 0
    length = window + 4 if window <= 64 else 6  # longer than the window, where trying that is cheap
    prompt = torch.linspace(1, config.vocab_size - 1, length, device="cpu").long().tolist()
    other = prompt[::-1][:5]
    prompts, completions = [prompt, prompt, other, prompt], [other, [*other[:2], *prompt[:3]], other, prompt[:2]]
    device = next(model.parameters()).device
    (shared,), (apart,) = (share_prompts(prompts, completions, share=share) for share in (True, False))

    def states(batch: PrefixBatch) -> Tensor:
        batch = batch.to(device)
        return batch.rows(hidden_states(decoder_inputs(batch, model))).float()

    try:
        with evaluating(model):
            found_NH, expected_NH = states(shared), states(apart)
            with rounding_anew(model):
                rounded_NH = states(apart)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):  # it takes no such mask
        return False
    # By the norm of each token's state: in 16 bits single numbers differ in their last bits, a few of them by a lot.
    error, rounding = (
        ((x_NH - expected_NH).norm(dim=1) / expected_NH.norm(dim=1)).max() for x_NH in (found_NH, rounded_NH)
    )
    return bool(error <= (_ROUNDINGS * rounding).clamp(min=1e-4))
