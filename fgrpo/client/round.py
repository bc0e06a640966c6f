"""A client's whole part in a round: train from the global model, compress the difference, tell how it went.

Engines differ only in how they bring the arguments here and take the result away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fgrpo.client.evaluation import with_heldout
from fgrpo.client.faults import with_fault
from fgrpo.client.local_training import train_locally
from fgrpo.client.masters import Masters
from fgrpo.client.noise import private
from fgrpo.client.owner import Client
from fgrpo.client.policy import Policy
from fgrpo.config import Config
from fgrpo.errors import TrainingError
from fgrpo.records import Reply, Report
from fgrpo.seeds import derive_seed
from fgrpo.stopwatch import Stopwatch
from fgrpo.wire.parameters import Manifest, fingerprint, load_flat
from fgrpo.wire.payload import Header, pack
from fgrpo_kernels.codec import encode


def client_round(
    client: Client,
    policy: Policy,
    params_P: Tensor,
    residual_P: Tensor | None,
    round_number: int,
    config: Config,
    stopwatch: Stopwatch,
) -> Reply:
    """Return the client's reply to a round.

    Args:
        params_P: float32, the global parameters; left as they are.
        residual_P: float32, what compression lost in earlier rounds, or None without error feedback. It is updated in
            place, and only once nothing can fail any more.
    """
    load_flat(policy.model, params_P)
    masters = Masters(policy.model, params_P)
    report = train_locally(policy, masters, client, config, round_number, stopwatch)
    report = with_heldout(report, policy, client, config, stopwatch)
    manifest = Manifest.of(policy.model)
    return reply(report, masters.flatten, manifest, params_P, residual_P, config, stopwatch)


def reply(
    report: Report,
    trained: Callable[[], Tensor],
    manifest: Manifest,
    params_P: Tensor,
    residual_P: Tensor | None,
    config: Config,
    stopwatch: Stopwatch,
) -> Reply:
    """Compress what training changed, and put it beside its report; both as the client's `fault` has them.

    Args:
        trained: gives the client's parameters after training, float32 [P]; on a GPU they are encoded there, to the
            same bits, so that only codes leave it.
        residual_P: as in `client_round`.
    """
    report, trained = with_fault(report, trained, params_P, config)
    with stopwatch("encode"):
        codec, new_P = config.codec, trained()
        start_P: Tensor | None = params_P
        if config.privacy is not None:
            new_P, start_P = private(new_P.to(params_P.device) - params_P, config.privacy), None
        try:
            device = new_P.device if codec.scale == "absmax" else torch.device("cpu")  # the one that a GPU has
            residual = None if residual_P is None else residual_P.to(device)
            delta = encode(
                new_P.to(device),
                None if start_P is None else start_P.to(device),
                codec=codec.codec,
                block=codec.block,
                rounding=codec.rounding,
                scale=codec.scale,
                seed=derive_seed(config.seed, report.client, "rounding", report.round),
                residual=residual,
            ).cpu()
            if residual_P is not None and residual is not None:
                residual_P.copy_(residual)
        except ValueError as error:
            raise TrainingError(f"{error}; training diverged, is train.lr too high?") from None
        payload = pack(delta, Header(report.client, report.round, manifest.hash, fingerprint(params_P)))
    return Reply(report.client, replace(report, seconds=dict(stopwatch.seconds)), payload)
