"""Deltas lie on the CPU, whatever device new tensors are made on by default."""

import torch

from fgrpo_kernels.codec import aggregate, aggregate_with_stats, check_codes, decode, encode, gram
from fgrpo_kernels.downlink import apply_update, encode_update
from fgrpo_kernels.robust import clipped_mean, median, norms, trimmed_mean

WEIGHTS = [0.5, 0.25, 0.25]


def results(deltas, new, base):
    residual = deltas[0] / 2
    encodeds = [encode(delta, codec=codec) for delta, codec in zip(deltas, ("int4", "int8", "bf16"), strict=True)]
    encodeds[0] = encode(deltas[0], deltas[1], residual=residual)
    check_codes(encodeds[0])
    mean, stats = aggregate_with_stats(encodeds, WEIGHTS)
    clipped = clipped_mean(encodeds, WEIGHTS, 1.0)
    return [
        residual,
        decode(encodeds[0]),
        aggregate(encodeds, WEIGHTS),
        mean,
        stats.squared_norms,
        stats.dots_with_mean,
        gram(encodeds),
        gram(encodeds[:2], encodeds[2:]),
        torch.as_tensor(norms(encodeds), device="cpu"),
        clipped.mean,
        trimmed_mean(encodeds, 1),
        median(encodeds),
        apply_update(base, encode_update(new, base)),
    ]


def test_the_same_elsewhere():
    deltas = list(torch.randn(3, 1000))
    base = torch.randn(1000).bfloat16()
    new = (base.float() * 1.001).bfloat16()
    expected = results(deltas, new, base)
    with torch.device("meta"):
        got = results(deltas, new, base)
    for g, e in zip(got, expected, strict=True):
        assert g.device.type == "cpu"
        assert torch.equal(g, e)
