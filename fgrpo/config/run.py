"""A whole run: its parts, where clients live, and how its model is evaluated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fgrpo.config.data import ClientConfig, PartitionConfig, RewardsConfig, TaskConfig
from fgrpo.config.privacy import PrivacyConfig
from fgrpo.config.remote import FlowerConfig, LimitsConfig
from fgrpo.config.server import AggregationConfig, CodecConfig, ParticipationConfig, ServerConfig
from fgrpo.config.training import LoraConfig, RolloutConfig, TrainConfig

PACKAGED_MODELS = ("tiny",)  # names of `model` that are folders of the package


@dataclass(frozen=True)
class EvaluationConfig:
    """Greedy accuracy of the global model on each client's held-out prompts. See `docs/evaluation.md`.

    Args:
        prompts: held-out prompts per client, of tasks without a test set of their own; they never appear in any
            client's training.
        every: rounds between evaluations; the model is always evaluated before the first and after the last round.
        batch_size: prompts decoded at once.
        clients: clients that hold prompts out, a seeded sample that stays the same for the whole run; null is all.
        tasks: a test set of the run's own, beside the clients': tasks whose datasets count whole, or `prompts` of a
            reasoning-gym task.
        samples: completions per client that the run keeps and its report shows, with their prompts. A client whose
            prompts are private keeps it at 0.
    """

    prompts: int = 64
    every: int = 0
    batch_size: int = 64
    clients: int | None = None
    tasks: list[TaskConfig] = field(default_factory=list)
    samples: int = 0


@dataclass(frozen=True)
class EngineConfig:
    """Where clients live.

    Args:
        workers: processes that clients are handed out to; 0 keeps them in this one. null decides by the cores, the
            clients of a round, the memory and the model's size; on an accelerator it is 0.
        threads: CPU threads per client, on which rounding depends. null is OMP_NUM_THREADS where that is set, else 1
            for a small model, else the cores, divided among the workers.
        stacked: all clients of a round at once in this process, their LoRA adapters stacked over one frozen model: for
            one accelerator. Results are those of one client after another, to rounding.
    """

    workers: int | None = None
    threads: int | None = None
    stacked: bool = False


@dataclass(frozen=True)
class Config:
    """A federated GRPO run.

    Args:
        model: `tiny` (ships with the package), a hub id, or a folder.
        gguf_file: name of a GGUF file inside the model folder or hub repository.
        dtype: number format of the model's weights.
        quantization: `nf4` keeps the frozen weights of the linear layers, but for the LM head, in 4 bits
            (bitsandbytes); needs `lora`.
        device: `auto` takes the accelerator if there is one.
        lora: train low-rank adapters; null trains all parameters.
        clients: the data owners, by name.
        partition: or one dataset, split into clients.
        rollout: how completions are sampled.
        rewards: what becomes of completions whose reward cannot be told.
        train: GRPO on one client.
        codec: compression of deltas.
        aggregation: how clients are weighed.
        server: how the global model moves.
        evaluation: held-out accuracy.
        participation: who takes part in a round; null is everybody.
        engine: where clients live.
        flower: clients on other machines.
        limits: what no honest reply exceeds.
        privacy: noise on what clients send; null is none.
        rounds: federated rounds.
        seed: seed of everything random.
        output_dir: folder of the run; null makes a new one under `runs/`.
        report_to: who draws the curves: `tensorboard` (under the run's folder), `wandb`, `trackio`.
    """

    model: str = "tiny"
    gguf_file: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantization: Literal["nf4"] | None = None
    device: str = "auto"
    lora: LoraConfig | None = None
    clients: dict[str, ClientConfig] = field(default_factory=dict)
    partition: PartitionConfig | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    participation: ParticipationConfig | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    flower: FlowerConfig = field(default_factory=FlowerConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    privacy: PrivacyConfig | None = None
    rounds: int = 10
    seed: int = 0
    output_dir: str | None = None
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = field(default_factory=lambda: ["tensorboard"])
