"""Rivals' packages where they are not installed: what the benchmarks call of them, by the same signatures, in plain
PyTorch. With them a benchmark's own lines are run and its checks are held against right results; nothing is timed.
"""

import importlib.util
import io
import sys
import zlib
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import torch
from torch.nn import functional

BITS = {torch.uint8: 8, torch.quint4x2: 4}


def provide(monkeypatch, distribution, real=True):
    """Have a package's modules imported for as long as a test runs: the `real` ones where they are installed."""
    modules = MODULES[distribution]
    if real and importlib.util.find_spec(next(iter(modules)).partition(".")[0]) is not None:
        return
    for name, members in modules.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


class Compressor:
    def __init__(self, level):
        self._level = level

    def compress(self, data):
        return zlib.compress(data, self._level)


class Decompressor:
    def stream_reader(self, data):
        return io.BytesIO(zlib.decompress(data))


def compute_quant_params(tensor, *, dtype, ctx):
    """One scale for all values, and the code of 0."""
    return float(tensor.abs().max()) / (2 ** (BITS[dtype] - 1) - 1), 2 ** (BITS[dtype] - 1)


def quantize(tensor, *, scale, zero_point, dtype, round_mode, ctx):
    noise = torch.rand_like(tensor) if round_mode == "stochastic" else 0.5
    return ((tensor / scale + noise).floor() + zero_point).to(torch.uint8)


def dequantize(tensor, *, scale, zero_point, dtype, ctx):
    return (tensor.to(dtype) - zero_point) * scale


def quantize_blocks(largest):
    """Codes in rows of a block, and their scales."""

    def quantize(A, *, blocksize, quant_type="nf4"):
        rows = A.view(-1, blocksize)
        scales = rows.abs().amax(1, keepdim=True) / largest
        return (rows / scales).round().to(torch.int16), SimpleNamespace(scales=scales)

    return quantize


def dequantize_blocks(A, quant_state):
    return (A * quant_state.scales).flatten()


class FusedLinearGRPOLoss:
    def __init__(self, beta, compiled, use_ref_model, loss_type, epsilon_low, epsilon_high):
        assert (beta, use_ref_model, loss_type) == (0.0, False, "dapo")
        self._clip = 1 - epsilon_low, 1 + epsilon_high

    def __call__(self, hidden, weight, targets, mask, advantages, old_per_token_logps):
        loss = clipped_loss(hidden @ weight.T, targets, mask, advantages, old_per_token_logps, "token", self._clip)
        return loss, []


def triton_grpo_loss(
    logits, old_logp, ref_logp, completion_ids, advantages, completion_mask, temperature, beta, eps_low, eps_high,
    inplace, loss_type, importance_sampling_level, reduce,
):  # fmt: skip
    assert (ref_logp, temperature, beta, inplace, loss_type, reduce) == (None, 1.0, 0.0, False, "dapo", True)
    arguments = completion_ids, completion_mask, advantages, old_logp, importance_sampling_level
    return clipped_loss(logits[:, :-1], *arguments, (1 - eps_low, 1 + eps_high)), []


def clipped_loss(logits, targets, mask, advantages, old_logp, level, clip):
    logp = logits.float().log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    log_ratio = (logp - old_logp) * mask
    if level == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    ratio = log_ratio.exp()
    loss = -torch.min(ratio * advantages[:, None], ratio.clamp(*clip) * advantages[:, None])
    return (loss * mask).sum() / mask.sum()


def linear_cross_entropy(x, weight, target):
    return functional.cross_entropy((x @ weight.T).float(), target)


# The distribution's modules, parents first, and what is in them.
MODULES = {
    "zstandard": {"zstandard": {"ZstdCompressor": Compressor, "ZstdDecompressor": Decompressor}},
    "pypiquant": {
        "piquant": {"Context": lambda threads: None},
        "piquant.torch": {
            "compute_quant_params": compute_quant_params, "quantize": quantize, "dequantize": dequantize,
        },
    },
    "bitsandbytes": {
        "bitsandbytes": {},
        "bitsandbytes.functional": {
            "quantize_blockwise": quantize_blocks(127), "dequantize_blockwise": dequantize_blocks,
            "quantize_4bit": quantize_blocks(7), "dequantize_4bit": dequantize_blocks,
        },
    },
    "liger-kernel": {
        "liger_kernel": {},
        "liger_kernel.chunked_loss": {"LigerFusedLinearGRPOLoss": FusedLinearGRPOLoss},
        "liger_kernel.transformers": {
            "LigerFusedLinearCrossEntropyLoss": lambda: lambda w, x, target: linear_cross_entropy(x, w, target),
        },
        "liger_kernel.transformers.grpo_loss": {"triton_grpo_loss": triton_grpo_loss},
    },
    "quack-kernels": {
        "quack": {},
        "quack.linear_cross_entropy": {"chunked_linear_cross_entropy": linear_cross_entropy},
    },
}  # fmt: skip
