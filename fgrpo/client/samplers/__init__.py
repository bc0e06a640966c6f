"""Who draws completions from the model, by the name in `rollout.sampler`.

A sampler is any callable `(Prompts, Request) -> Completions` (see `base`); adding one is adding a file and a line here.
"""

from __future__ import annotations

from torch import nn

from fgrpo.client.samplers.base import Completions, Prompts, Request, Sampler
from fgrpo.client.samplers.transformers import TransformersSampler
from fgrpo.config import Config

__all__ = ["Completions", "Prompts", "Request", "Sampler", "make_sampler"]


def make_sampler(model: nn.Module, config: Config) -> Sampler:
    """Return the sampler that the configuration names, made for this model."""
    if config.rollout.sampler == "vllm":
        from fgrpo.client.samplers.vllm import VLLMSampler

        return VLLMSampler(model, config)
    return TransformersSampler(model)
