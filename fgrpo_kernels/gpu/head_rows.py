"""Rows of logits in the LM head's buffer on a GPU: the kernel of `grpo_loss`, launched in place.

n rows of the buffer   V vocabulary
"""

from __future__ import annotations

from torch import Tensor

from fgrpo_kernels.dispatch import device_of
from fgrpo_kernels.gpu.grpo_loss import grpo_loss_kernel
from fgrpo_kernels.gpu.launch_table import tile_for
from fgrpo_kernels.kl import DEVICE_ESTIMATORS
from fgrpo_kernels.objectives import DEVICE_FUNCTIONS
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
    vectors = (terms.advantages_N, terms.weights_N, terms.policy_factor_N, terms.old_logp_N, terms.ref_logp_N)
    parameters = [float(x) for x in form.parameters] + [0.0] * (4 - len(form.parameters))
    with device_of(logits_nV):
        grpo_loss_kernel[(n,)](
            *rows, *rows, n, targets_n, *vectors, logp_n, entropy_n, V, V, 1.0 / temperature,
            *parameters, terms.beta, terms.entropy_coef,
            OBJECTIVE=DEVICE_FUNCTIONS[form.name],
            KL=DEVICE_ESTIMATORS[terms.kl] if terms.beta != 0 else None,
            HAS_ENTROPY=terms.entropy_coef != 0,
            **tile_for(logits_nV, V, read_twice=True).arguments(),
        )  # fmt: skip
