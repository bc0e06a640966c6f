"""A delta tried out: what the global model is worth with it on top."""

from __future__ import annotations

from torch import Tensor

from fgrpo.client.evaluation import score
from fgrpo.client.guard import guarded
from fgrpo.client.owner import Client
from fgrpo.client.policy import Policy
from fgrpo.config import Config
from fgrpo.records import Failure, Trial
from fgrpo.wire.parameters import load_flat
from fgrpo.wire.payload import unpack
from fgrpo_kernels.codec import decode


def try_out(
    policy: Policy, public: Client, params_P: Tensor, client: str, payload: bytes | None, config: Config
) -> Trial | Failure:
    """Score the global model with a client's delta on the public prompts.

    Args:
        public: holds the public prompts out.
        params_P: float32, the global parameters; left as they are.
        payload: the client's; None for the global model itself.
    """

    def play() -> Trial:
        tried_P = params_P if payload is None else decode(unpack(payload)[1]).add_(params_P)
        load_flat(policy.model, tried_P)
        return Trial(client, score(policy, public, config))

    return guarded(client, play)
