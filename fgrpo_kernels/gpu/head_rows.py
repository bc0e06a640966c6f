"""Rows of logits in the LM head's buffer on a GPU: the kernel of `grpo_loss`, launched in place.

n rows of the buffer   V vocabulary
"""

from __future__ import annotations

from torch import Tensor

from fgrpo_kernels.gpu.loss_rows import launch_loss
from fgrpo_kernels.gpu.policy_terms import parameters_of, vectors_of
from fgrpo_kernels.objectives.base import DeviceForm
from fgrpo_kernels.policy_terms import PolicyTerms


def overwrite_with_loss_gradient(
    logits_nV: Tensor,
    targets_n: Tensor,
    terms: PolicyTerms,
    form: DeviceForm,
    temperature: float,
    logp_n: Tensor,
    entropy_n: Tensor,
) -> None:
    """Write logp and entropy, and turn the logits into their gradient, in one launch.

    `terms` are those of these rows.
    """
    n, V = logits_nV.shape
    rows = (logits_nV, 0, 1, logits_nV.stride(0))
    numbers = (V, V, 1.0 / temperature, *parameters_of(form), terms.beta, terms.entropy_coef)
    launch_loss((*rows, *rows, n, targets_n, *vectors_of(terms), logp_n, entropy_n), numbers, n, form.name, terms.kl)
