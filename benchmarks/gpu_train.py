"""A client's round on a GPU: time by stage, and the share of it that the GPU is busy.

    python benchmarks/gpu_train.py                    # the tiny model, and Qwen2.5-0.5B's shape with random weights
    python benchmarks/gpu_train.py --models tiny --steps 2

The first round compiles the kernels, the second is timed, the third is watched by the profiler.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgrpo.client.model import model_source
from fgrpo.config import ClientConfig, Config, LoraConfig, RolloutConfig, TaskConfig, TrainConfig
from fgrpo.engines.workplace import Workplace
from fgrpo.records import Failure
from fgrpo.residuals import Residuals
from fgrpo.wire.parameters import flatten
from fgrpo_kernels.bench.machine import header
from fgrpo_kernels.bench.results import Record, ResultFile, failed

QWEN = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def random_qwen(folder: Path) -> str:
    """A model of Qwen2.5-0.5B's shape with the tiny model's tokenizer, saved there: the numbers do not matter here."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(model_source(Config(model="tiny")))
    config = Qwen2Config(**QWEN, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    Qwen2ForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny(options: argparse.Namespace) -> Config:
    return config_of("tiny", "float32", None, options)


def qwen(options: argparse.Namespace) -> Config:
    folder = random_qwen(Path(options.folder) / "qwen")
    return config_of(folder, "bfloat16", LoraConfig(target_modules="all-linear"), options)


def tiny_with_adapters(options: argparse.Namespace) -> Config:
    return config_of("tiny", "float32", LoraConfig(rank=1), options)


MODELS = {"tiny": tiny, "tiny-lora": tiny_with_adapters, "qwen2.5-0.5b": qwen}


def config_of(model: str, dtype: Any, lora: LoraConfig | None, options: argparse.Namespace) -> Config:
    sums = TaskConfig(reasoning_gym="chain_sum", params={"min_terms": 2, "max_terms": 2})
    return Config(
        model=model,
        dtype=dtype,
        device="cuda",
        lora=lora,
        clients={"sums": ClientConfig([sums])},
        rollout=RolloutConfig(prompts_per_step=options.prompts, group_size=8, max_new_tokens=options.tokens),
        # Random weights earn no reward: the KL term gives every token something to learn.
        train=TrainConfig(local_steps=options.steps, beta=0.04),
    )


def rounds(name: str, config: Config) -> Record:
    """The record of a model: seconds by stage of its second round, and the third one's share of busy time."""
    workplace = Workplace.open(config)
    params_P = flatten(workplace.policy.model)
    play(workplace, params_P, 1)
    wall, seconds = play(workplace, params_P, 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        watched, _ = play(workplace, params_P, 3)
    busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    return {
        "name": name,
        "parameters": params_P.numel(),
        "round_s": wall,
        "stages_s": seconds,
        "busy_share": busy / watched,
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def play(workplace: Workplace, params_P: Tensor, number: int) -> tuple[float, dict[str, float]]:
    """Seconds of a client's round, and of its stages."""
    (client,) = workplace.owners.taking_part
    torch.cuda.synchronize()
    start = time.perf_counter()
    trained = workplace.train(client, params_P, Residuals({}), number, lambda stage: None)
    torch.cuda.synchronize()
    if isinstance(trained, Failure):
        raise RuntimeError(trained.traceback or trained.reason)
    return time.perf_counter() - start, dict(trained[0].report.seconds)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS), help="joined by commas")
    parser.add_argument("--steps", type=int, default=4, help="local steps of a round")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="of a completion")
    options = parser.parse_args(arguments)
    file, wrong = ResultFile("train", header("cuda"), settings=vars(options).copy()), 0
    with tempfile.TemporaryDirectory() as options.folder:
        for name in options.models:
            try:
                record = rounds(name, MODELS[name](options))
            except Exception as error:  # one model's fault must not lose the others' figures
                record = failed(name, f"{type(error).__name__}: {error}")
                wrong = 1
            file.add(record)
            print(record, flush=True)
            torch.cuda.empty_cache()
    print(f"written: {file.path}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
