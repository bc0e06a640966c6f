"""Clients that misbehave, for studies of what that does to the others and never for use. See `docs/test_bed.md`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fgrpo.config import Config
from fgrpo.records import Report
from fgrpo.seeds import derive_seed

Answer = tuple[Report, Callable[[], Tensor]]  # a report, and what gives the trained parameters, float32 [P]


def with_fault(report: Report, trained: Callable[[], Tensor], params_P: Tensor, config: Config) -> Answer:
    """Return what a client tells and sends in place of an honest answer; the same one where it has no fault.

    Args:
        params_P: float32, the global parameters.
    """
    owner = config.clients.get(report.client)
    if owner is None or owner.fault is None:
        return report, trained
    factor, std = owner.fault.inflate_reward, owner.fault.noise
    if factor is not None:
        inflation, heldout = float(factor) ** report.round, report.heldout
        if heldout is not None:
            heldout = replace(heldout, mean=heldout.mean * inflation)
        report = replace(report, reward_mean=report.reward_mean * inflation, heldout=heldout)
    if std is None:
        return report, trained
    generator = torch.Generator().manual_seed(derive_seed(config.seed, report.client, "noise", report.round))
    return report, lambda: params_P + std * torch.randn(len(params_P), generator=generator)
