"""TRL's GRPOTrainer on the packaged tiny model: seconds a run, with everything that a run has.

Generated are real completions of the model; some groups have equal rewards, so that their advantages are exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import fgrpo

MODEL = Path(fgrpo.__file__).parent / "models" / "tiny"
PROMPTS = ["12 + 31 =", "4 - 2 * 3", "spell cat", "7 + 7"]
FIXED = PROMPTS[1]  # every completion of this prompt has the same reward


def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """Depends on the completion's text alone; exact in float32."""
    return [0.5 if p == FIXED else (sum(map(ord, c)) % 8) / 8 for p, c in zip(prompts, completions, strict=True)]


@dataclass
class Curve(TrainerCallback):
    """What a run logged, without what depends on the clock."""

    logs: list[dict[str, float]]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.logs.append({k: v for k, v in logs.items() if "time" not in k and "per_second" not in k})


def tiny_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def make_trainer(
    folder: Path,
    *,
    model: Any = None,
    trainer_class: type[GRPOTrainer] = GRPOTrainer,
    peft_config: Any = None,
    steps: int = 3,
    **options: Any,
) -> tuple[GRPOTrainer, Curve]:
    """A trainer and the curve that it will fill."""
    defaults = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "bf16": False,
    }
    args = GRPOConfig(
        output_dir=str(folder), use_cpu=True, report_to="none", logging_steps=1, max_steps=steps,
        save_strategy="no", disable_tqdm=True, seed=7, **defaults | options,
    )  # fmt: skip
    curve = Curve([])
    trainer = trainer_class(
        model=tiny_model() if model is None else model,
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 2}),
        processing_class=AutoTokenizer.from_pretrained(MODEL, padding_side="left"),
        peft_config=peft_config,
        callbacks=[curve],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, curve


def train(folder: Path, prepare: Callable[[GRPOTrainer], Any] = lambda trainer: None, **options: Any) -> Curve:
    """Train from a fixed seed; `prepare` may change the trainer first."""
    trainer, curve = make_trainer(folder, **options)
    prepare(trainer)
    trainer.train()
    return curve
