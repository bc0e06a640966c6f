"""A GRPO training pass with every prompt once a group against one row a sequence: time and peak memory, on a CPU.

    python benchmarks/bench_shared_prompts.py                       # SmolLM2-135M's shape, random weights
    python benchmarks/bench_shared_prompts.py --prompt 256 --layers 4

Both ways are the loop's own: the decoder in the model's format, then `linear_grpo_loss` on the completions' rows. Each
way runs in a process of its own, in turns; a result counts only if both give the same loss and gradient norm.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WAYS = {"shared": True, "apart": False}
SIZES = {"prompt": 1024, "completion": 128, "group": 8, "layers": 30, "threads": 1}
TOLERANCE = 2e-4  # relative, between the two ways' losses and gradient norms in float32


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.way:
        print(json.dumps(_measure(arguments)))
        return 0
    options = [
        f"--{name}={getattr(arguments, name)}" for name in ("prompt", "completion", "group", "layers", "threads")
    ]
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(arguments.repetitions):
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, *options]
            runs[way].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print(f"{way:>7}: {_line(runs[way][-1])}", flush=True)
    shared, apart = (runs[way] for way in WAYS)
    for name in ("loss", "gradient_norm"):
        ours, theirs = shared[0][name], apart[0][name]
        if not abs(ours - theirs) <= TOLERANCE * abs(theirs):
            print(f"failed: {name} is {ours} shared and {theirs} apart; no ratio is printed")
            return 1
    of = {name: [statistics.median(run[name] for run in runs[way]) for way in WAYS] for name in shared[0]}
    speed, memory = of["seconds"][1] / of["seconds"][0], of["added_mib"][0] / of["added_mib"][1]
    print(
        f"shared prompts: {speed:.2f} times as fast, with {memory:.2f} of the memory beyond the model's "
        f"({of['peak_mib'][0] / of['peak_mib'][1]:.2f} of the whole process's)"
    )
    print(f"written: {_save(arguments, runs, speed, memory)}")
    return 0


def _save(arguments: argparse.Namespace, runs: dict[str, list[dict[str, Any]]], speed: float, memory: float) -> Path:
    from fgrpo_kernels.bench.machine import header
    from fgrpo_kernels.bench.results import save

    shape = {name: getattr(arguments, name) for name in SIZES}
    results: list[dict[str, Any]] = [{"name": way, "repetitions": runs[way]} for way in WAYS]
    results[0]["headline"] = {
        "what": f"training pass, prompt {shape['prompt']}, {shape['group']} completions of {shape['completion']}",
        "figure": f"{statistics.median(run['seconds'] for run in runs['shared']):.3g} s",
        "against": f"one row a sequence, {speed:.2f} times as long; {memory:.2f} of its memory",
    }
    return save("shared_prompts", header(packages=["transformers"]), results, settings=shape)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    return parser


def _line(run: dict[str, Any]) -> str:
    return (
        f"{run['seconds']:.2f} s, {run['tokens']} tokens in the model, {run['added_mib']:.0f} MiB more than the model "
        f"({run['peak_mib']:.0f} in all)"
    )


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fgrpo_kernels import linear_grpo_loss
    from fgrpo_kernels.models.shared_attention import enable_shared_attention
    from fgrpo_kernels.models.shared_decoder import decoder_inputs
    from fgrpo_kernels.shared_prompts import share_prompts

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    vocabulary = 49_152
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=arguments.layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    enable_shared_attention(model)
    group = arguments.group
    prompt = torch.randint(1, vocabulary, (arguments.prompt,)).tolist()
    completions = torch.randint(1, vocabulary, (group, arguments.completion))
    advantages = torch.linspace(-1, 1, group)

    before = _peak_mib()
    start = time.perf_counter()
    (batch,) = share_prompts([prompt] * group, completions.tolist(), share=WAYS[arguments.way])
    hidden = model.get_decoder()(**decoder_inputs(batch, model)).last_hidden_state
    targets = completions[batch.sequences, batch.tokens]
    rows = torch.ones(len(targets))
    loss = linear_grpo_loss(
        batch.rows(hidden),
        model.lm_head.weight,
        targets,
        advantages[batch.sequences],
        rows / len(rows),
        old_logp=-math.log(vocabulary) * rows,
    ).loss
    loss.backward()
    seconds = time.perf_counter() - start
    peak = _peak_mib()
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters()])).item()
    return {
        "seconds": seconds,
        "tokens": batch.input_ids.numel(),
        "peak_mib": peak,
        "added_mib": peak - before,
        "loss": loss.item(),
        "gradient_norm": norm,
    }


def _peak_mib() -> float:
    """The most memory that this process has held so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "Linux tells"
    return int(found[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
