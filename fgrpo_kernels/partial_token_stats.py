"""Log-probabilities and entropies of a vocabulary that is split over workers, without gathering the logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fgrpo_kernels import reference
from fgrpo_kernels.checks import check_floating, check_positive, check_rows, check_tensors, check_token_ids
from fgrpo_kernels.derivatives import needs_reference
from fgrpo_kernels.dispatch import uses_triton
from fgrpo_kernels.gpu import partial_token_stats as gpu
from fgrpo_kernels.results import PartialTokenStats, TokenLogprobs


def partial_token_stats(
    logits_shard: Tensor, targets: Tensor, vocab_start: int, *, temperature: float = 1.0
) -> PartialTokenStats:
    """What a worker that has columns `vocab_start` and up of the logits can say of each row: four numbers.

    Gather the four vectors from all workers, put your own (differentiable) ones in your place, and merge:

        mine = partial_token_stats(logits_shard, targets, vocab_start)
        stacked = torch.stack(mine)                                   # [4, ...]
        gathered = [torch.empty_like(stacked) for _ in range(world_size)]
        torch.distributed.all_gather(gathered, stacked.detach())
        parts = [PartialTokenStats(*part) for part in gathered]
        parts[rank] = mine
        logp, entropy = merge_token_stats(parts)

    Every worker then has the whole result, and its backward pass gives the gradient of its own shard.

    Args:
        logits_shard: `[..., V_shard]` of any floating dtype.
        targets: `[...]` int64 in the whole vocabulary, the same on all workers.
        vocab_start: the whole vocabulary's index of the shard's first column.
        temperature: divides the logits.

    Example:
        >>> logits, targets = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([2])
        >>> partial_token_stats(logits[:, :2], targets, vocab_start=0).peak
        tensor([1.])

    Raises:
        TypeError, ValueError: wrong types, devices, dtypes, shapes or options, by name.
        NotImplementedError: a gradient with `create_graph=True`.
    """
    check_tensors("partial_token_stats", logits_shard=logits_shard, targets=targets)
    check_floating("partial_token_stats", "logits_shard", logits_shard)
    check_token_ids("partial_token_stats", targets)
    check_rows("partial_token_stats", "targets", targets, logits_shard.shape[:-1])
    check_positive("partial_token_stats", "temperature", temperature)
    if vocab_start < 0:
        raise ValueError(f"partial_token_stats: vocab_start must be the index of a column, got {vocab_start}")
    if uses_triton(logits_shard) and not needs_reference(logits_shard):
        return gpu.partial_token_stats(logits_shard, targets, vocab_start, temperature)
    return reference.partial_token_stats(logits_shard, targets, vocab_start, temperature=temperature)


def merge_token_stats(parts: Sequence[PartialTokenStats]) -> TokenLogprobs:
    """logp and entropy of the whole vocabulary from the statistics of all its shards, in any order.

    Differentiable in the parts. A target that no shard has gives logp -inf.

    Example:
        >>> logits, targets = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([2])
        >>> parts = [partial_token_stats(logits[:, a:b], targets, a) for a, b in ((0, 2), (2, 3))]
        >>> merge_token_stats(parts).logp
        tensor([-0.4076])

    Raises:
        ValueError: no parts.
    """
    if isinstance(parts, PartialTokenStats):
        raise TypeError("merge_token_stats: parts must be a list of PartialTokenStats, one a shard, got a single one")
    if not parts:
        raise ValueError("merge_token_stats: expected the statistics of at least one shard, got none")
    peak_K, others_K, dot_K, target_K = (torch.stack([part[i] for part in parts]) for i in range(4))
    # A shard of nothing but -inf has a peak of 0, which may be far above all that there is.
    empty_K = (others_K == 0) & (target_K == -torch.inf)
    peak_K = peak_K.detach().masked_fill(empty_K, -torch.inf)
    peak = peak_K.amax(0)
    peak = torch.where(peak == -torch.inf, 0.0, peak)
    drop_K = (peak_K - peak).masked_fill(empty_K, 0.0)
    keep_K = drop_K.exp()
    # The smallest normal number, so that a vocabulary of one column has a logarithm.
    others = (keep_K * others_K).sum(0).clamp(min=torch.finfo(peak.dtype).tiny)
    dot = (keep_K * (dot_K + others_K * drop_K)).sum(0)
    target = target_K.amax(0) - peak
    # log(e^t / (others + e^t)) in the form whose value and slope keep their digits when the target leads.
    logp = torch.nn.functional.logsigmoid(target - others.log())
    probability = logp.exp()
    finite = torch.where(target == -torch.inf, 0.0, target)
    log_sum = torch.where(target == -torch.inf, others.log(), finite - torch.where(target == -torch.inf, 0.0, logp))
    entropy = log_sum - (dot * (-log_sum).exp() + finite * probability)
    return TokenLogprobs(logp, entropy)
