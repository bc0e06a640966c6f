"""Sampling with vLLM in this process, beside the model in training and on the same GPU.

Written against vLLM's documented interface (`LLM`, `SamplingParams`, `LoRARequest`, `LLM.apply_model`) and not run
here: the tests put a stand-in of that interface in its place.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from fgrpo.client.model import is_adapted, model_source
from fgrpo.client.samplers.base import Completions, Prompts, Request
from fgrpo.config import Config
from fgrpo.errors import ConfigError
from fgrpo.seeds import derive_seed

# Part of the GPU's memory for vLLM's weights and cache; the rest is for training.
_MEMORY_SHARE = 0.3
# The ranks that vLLM has kernels for: an adapter takes the next one up.
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 512)


class VLLMSampler:
    """Hands vLLM the model's weights, or its adapter, at every call, and prompts as token ids.

    vLLM's kernels round otherwise than the model's own, so that on the policy that was sampled from ratios are near 1,
    not 1. With `Request.greedy` the log-probabilities are those at temperature 1.
    """

    def __init__(self, model: nn.Module, config: Config) -> None:
        if config.gguf_file:
            raise ConfigError("rollout.sampler: vllm does not take a model from a gguf_file here; take transformers")
        # The engine in this process: weights are handed over as they are, without pickling.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            from vllm import LLM
        except ImportError as error:
            reason = f"vllm cannot be imported ({error}); install it, or take transformers"
            raise ConfigError(f"rollout.sampler: {reason}") from None
        self._model = model
        self._adapters = _AdapterFolder(model) if is_adapted(model) else None
        lora: dict[str, Any] = {}
        if config.lora is not None:
            rank = next((rank for rank in _LORA_RANKS if rank >= config.lora.rank), config.lora.rank)
            lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        self._engine = LLM(
            model=model_source(config),
            dtype=config.dtype,
            seed=config.seed,
            gpu_memory_utilization=_MEMORY_SHARE,
            generation_config="vllm",  # the checkpoint's own would change the distribution
            logprobs_mode="processed_logprobs",  # after the temperature, as they were drawn
            **lora,
        )

    def __call__(self, prompts: Prompts, request: Request) -> Completions:
        from vllm import SamplingParams

        adapter = self._hand_over()
        rows = [tokens[mask.bool()].tolist() for tokens, mask in zip(prompts.tokens_PL, prompts.mask_PL, strict=True)]
        parameters = [
            SamplingParams(
                n=request.group_size,
                temperature=0.0 if request.greedy else request.temperature,
                seed=derive_seed(request.seed, prompt),
                max_tokens=request.max_new_tokens,
                stop_token_ids=list(request.end_ids),
                logprobs=0,  # of the drawn token only
                detokenize=False,
            )
            for prompt in range(len(rows))
        ]
        inputs = [{"prompt_token_ids": row} for row in rows]
        answers = self._engine.generate(inputs, parameters, lora_request=adapter, use_tqdm=False)
        drawn = [completion for answer in answers for completion in answer.outputs]
        return _padded(drawn, request.pad_id, prompts.tokens_PL.device)

    def _hand_over(self) -> Any:
        """Give vLLM the model as it is now; return the adapter to ask for, if it is one."""
        if self._adapters is not None:
            return self._adapters.save()
        weights = [(name, parameter.detach()) for name, parameter in self._model.named_parameters()]

        def load(theirs: Any) -> None:
            theirs.load_weights(weights)

        self._engine.apply_model(load)
        self._engine.reset_prefix_cache()
        return None


class _AdapterFolder:
    """Saves a model's adapter again and again, every time under a number of its own: vLLM keeps one it knows."""

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._folder = TemporaryDirectory(prefix="fgrpo-adapter-")
        self._numbers = count(1)

    def save(self) -> Any:
        from vllm.lora.request import LoRARequest

        number = next(self._numbers)
        path = Path(self._folder.name) / "adapter"
        self._model.save_pretrained(path, save_embedding_layers=False)
        return LoRARequest(f"adapter-{number}", number, str(path))


def _padded(drawn: list[Any], pad_id: int, device: torch.device) -> Completions:
    """Return vLLM's completions as one batch, padded on the right."""
    longest = max(len(completion.token_ids) for completion in drawn)
    tokens_BT = torch.full((len(drawn), longest), pad_id)
    logp_BT = torch.zeros(len(drawn), longest)
    for row, completion in enumerate(drawn):
        length = len(completion.token_ids)
        tokens_BT[row, :length] = torch.tensor(completion.token_ids)
        logp_BT[row, :length] = _logprobs(completion)
    return Completions(tokens_BT.to(device), logp_BT.to(device))


def _logprobs(completion: Any) -> Tensor:
    steps = zip(completion.token_ids, completion.logprobs, strict=True)
    return torch.tensor([step[token].logprob for token, step in steps])
