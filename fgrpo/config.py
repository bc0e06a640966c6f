"""The configuration of a run: typed, read from YAML, every key overridable on the command line.

A field's docstring is its help text. Nothing here builds or loads anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class TaskConfig:
    """Prompts with a verifiable reward: a reasoning-gym task, or a Hugging Face dataset.

    Args:
        reasoning_gym: name of a reasoning-gym task, for example `chain_sum`.
        params: parameters of that task.
        dataset: hub id of a dataset, or a local `.json`, `.jsonl`, `.csv` or `.parquet` file.
        subset: the dataset's configuration name, where it has several.
        split: the dataset's split that training prompts are drawn from, and held-out prompts too without a test set.
        test_dataset: file or hub id of a test set of its own, with the same columns; it counts whole, and no client
            trains on a prompt that is in it. null is `dataset`, if there is a `test_split`.
        test_split: the split of the test set, for example `test` or `test[:500]`; null is `train` of a `test_dataset`.
        prompt_column: column with the prompt: text, or a list of chat messages.
        answer_column: column with the reference answer; null for rewards that need none.
        reward: `exact_match`, `number_match`, `math_verify`, or an import path `package.module:function` of a function
            that takes `(completion, answer)` or TRL's keywords; a list of several, or a weight for each by name; null
            means the task's own verifier (reasoning-gym) or `exact_match`. See `docs/rewards.md`.
        weight: share of this task in its client's mixture.
    """

    reasoning_gym: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    test_dataset: str | None = None
    test_split: str | None = None
    prompt_column: str = "prompt"
    answer_column: str | None = "answer"
    reward: str | list[str] | dict[str, float] | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class ClientConfig:
    """One data owner: a mixture of tasks, and the scale in which it happens to measure reward.

    Args:
        tasks: the client's tasks; prompts are drawn in proportion to their weights.
        reward_scale: factor on every reward of this client.
    """

    tasks: list[TaskConfig]
    reward_scale: float = 1.0


@dataclass(frozen=True)
class RewardsConfig:
    """What becomes of a completion whose reward cannot be told. See `docs/rewards.md`.

    Args:
        on_error: a reward function that fails for a completion, or returns what is no finite number: `skip` takes the
            completion out of its group, `zero` counts 0 from that function, `raise` ends the client's round.
    """

    on_error: Literal["skip", "zero", "raise"] = "skip"


@dataclass(frozen=True)
class PartitionConfig:
    """Splits one dataset into clients with the partitioners of flwr-datasets.

    Args:
        task: the dataset to split.
        clients: number of clients (ignored by `column`, which makes one client per value).
        scheme: `iid` (rows dealt out at random), `dirichlet` (label skew over `column`), or `column` (one client per
            value of `column`, and named after it).
        column: the column that `dirichlet` and `column` look at.
        alpha: concentration of `dirichlet`; smaller is more skewed.
    """

    task: TaskConfig
    clients: int = 4
    scheme: Literal["iid", "dirichlet", "column"] = "iid"
    column: str | None = None
    alpha: float = 0.5


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters instead of all parameters.

    Args:
        rank: rank of the adapters.
        alpha: scale of the adapters; the update is multiplied by alpha / rank.
        dropout: dropout on the adapters' input.
        target_modules: module names to adapt, or `all-linear`.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"


@dataclass(frozen=True)
class RolloutConfig:
    """How completions are sampled.

    Args:
        prompts_per_step: different prompts in a rollout batch.
        group_size: completions per prompt; advantages are relative within this group.
        max_new_tokens: length limit of a completion, in tokens.
        temperature: sampling temperature; the loss uses the same.
        system_prompt: put before every prompt, where the chat template has a place for it; a chat that brings a
            system message of its own keeps that one.
        sampler: what draws completions: `transformers` is a decoding loop over the model itself, on any device; `vllm`
            an engine of its own beside it, on the same GPU.
    """

    prompts_per_step: int = 16
    group_size: int = 8
    max_new_tokens: int = 64
    temperature: float = 1.0
    system_prompt: str | None = None
    sampler: Literal["transformers", "vllm"] = "transformers"


@dataclass(frozen=True)
class TrainConfig:
    """GRPO on one client between two rounds.

    Args:
        local_steps: rollout batches per round.
        updates_per_rollout: optimisation passes over each rollout batch; from the second on, the clipped ratio works.
        minibatches: optimiser steps per pass; at most this many parts, cut between groups.
        max_tokens: tokens that enter the model at once in training, padding included; more are split into parts whose
            gradients add up. The dial for memory.
        lr: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        max_grad_norm: gradients are clipped to this norm; 0 turns clipping off.
        clip_low: the ratio's lower clip range.
        clip_high: the ratio's upper clip range.
        level: importance ratio per token (GRPO) or per sequence (GSPO).
        reduction: how token losses are weighted; see `fgrpo_kernels.token_weights`.
        advantage_scale: divide advantages by the group's standard deviation, the batch's, or nothing (Dr. GRPO).
        baseline: subtract the group's mean, or the mean of the other completions (RLOO).
        beta: weight of the KL penalty towards the starting model.
        entropy_coef: weight of the entropy bonus.
        model_dropout: train with the dropout that the model's own configuration asks for, which rollouts do without, so
            that ratios move off 1 before the policy does; dropout of the adapters is `lora.dropout`.
    """

    local_steps: int = 4
    updates_per_rollout: int = 1
    minibatches: int = 1
    max_tokens: int = 8192
    lr: float = 1e-5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    level: Literal["token", "sequence"] = "token"
    reduction: Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo"] = "dapo"
    advantage_scale: Literal["group", "batch", "none"] = "group"
    baseline: Literal["mean", "leave_one_out"] = "mean"
    beta: float = 0.0
    entropy_coef: float = 0.0
    model_dropout: bool = False


@dataclass(frozen=True)
class CodecConfig:
    """How a client's delta is compressed.

    Args:
        codec: `int8`, `int4`, `int2`, `bf16`, or `none` for float32.
        block: parameters that share one 16-bit scale; a power of two from 32 to 1024.
        rounding: to the `nearest` code, or `stochastic`, which is unbiased: for clients that keep no residual.
        scale: of a block, by its largest value (`absmax`) or by the least squared error (`mse`: at int4 a fifth less
            error, at int2 half; with `nearest` only).
        error_feedback: add what rounding lost to the client's next delta.
    """

    codec: Literal["int8", "int4", "int2", "bf16", "none"] = "int4"
    block: int = 64
    rounding: Literal["nearest", "stochastic"] = "nearest"
    scale: Literal["absmax", "mse"] = "absmax"
    error_feedback: bool = True


@dataclass(frozen=True)
class AggregationConfig:
    """How clients are weighed, and their deltas combined. See `docs/aggregation.md` and `docs/robust.md`.

    Args:
        rule: `fgrpo`, `fedavg`, `uniform` or `reward`.
        n_k: what a client's share is counted by in `fgrpo`, `fedavg` and `reward`: its training `rows`, as FedAvg was
            published (`sequences` where a client has no such number, as reasoning-gym's tasks never end), or the
            `sequences` or `tokens` that it trained on in the round.
        tau: fgrpo: temperature of the weights; smaller follows the gain more sharply.
        clip: fgrpo: bound on the relative gain.
        cap: fgrpo: the largest weight that one client may have (at least 1/K).
        decay: how much of a client's baseline survives a round.
        scale: fgrpo: what makes a gain relative: the client's own baseline, or its own running deviation.
        robust: `none` is the rule's weighted mean; `clipped_mean` the same of deltas clipped to `max_norm`;
            `trimmed_mean` and `median` are per parameter and count every client the same, whatever the rule.
        max_norm: clipped_mean: the largest L2 norm that a client's delta keeps.
        trim: trimmed_mean: clients dropped at each end, so many may be hostile.
    """

    rule: Literal["fgrpo", "fedavg", "uniform", "reward"] = "fgrpo"
    n_k: Literal["rows", "sequences", "tokens"] = "rows"
    tau: float = 1.0
    clip: float = 1.0
    cap: float = 0.5
    decay: float = 0.7
    scale: Literal["baseline", "deviation"] = "baseline"
    robust: Literal["none", "clipped_mean", "trimmed_mean", "median"] = "none"
    max_norm: float | None = None
    trim: int | None = None


@dataclass(frozen=True)
class ServerConfig:
    """How the server applies the aggregated delta.

    Args:
        optimizer: `plain` adds it, `momentum` is Nesterov's (as in DiLoCo), `adam` is FedAdam.
        lr: the server's learning rate; null means 1 for `plain`, 0.7 for `momentum`, 1e-3 for `adam`.
        momentum: momentum of `momentum`, first-moment decay of `adam`.
        beta2: second-moment decay of `adam`.
        eps: added to the root of `adam`'s second moment.
    """

    optimizer: Literal["plain", "momentum", "adam"] = "plain"
    lr: float | None = None
    momentum: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-3


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
class ParticipationConfig:
    """Which clients take part in a round: a sample that depends on the seed and the round alone.

    Args:
        fraction: share of the clients, rounded to a whole number, at least one.
        clients_per_round: or how many of them.
        seed: of the sample; null is the run's.
    """

    fraction: float | None = None
    clients_per_round: int | None = None
    seed: int | None = None


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
    rounds: int = 10
    seed: int = 0
    output_dir: str | None = None
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = field(default_factory=lambda: ["tensorboard"])
