"""What clients own: prompts with a reward, or one dataset split among them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

NAMED_REWARDS = ("exact_match", "number_match", "math_verify")


@dataclass(frozen=True)
class DiagnosticConfig:
    """For studies only: a verdict in place of a task's own. See `docs/test_bed.md`.

    Args:
        reward: `coin` is 1 with probability `p` whatever the completion, `saturated` always 1, `hopeless` always 0,
            `negated` 1 minus the task's own reward, so that wrong answers are preferred.
        p: coin: probability of a reward of 1.
    """

    reward: Literal["coin", "saturated", "hopeless", "negated"]
    p: float = 0.5


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
        diagnostic: for studies only: a verdict that teaches nothing, or the opposite, in place of the reward.
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
    diagnostic: DiagnosticConfig | None = None


@dataclass(frozen=True)
class FaultConfig:
    """For studies only: how a client misbehaves. See `docs/test_bed.md`.

    Args:
        inflate_reward: the mean reward that it reports, and the held-out score where it reports one, are multiplied by
            this once more every round.
        noise: it sends normal noise of this standard deviation per parameter in place of what it learned.
    """

    inflate_reward: float | None = None
    noise: float | None = None


@dataclass(frozen=True)
class ClientConfig:
    """One data owner: a mixture of tasks, and the scale in which it happens to measure reward.

    Args:
        tasks: the client's tasks; prompts are drawn in proportion to their weights.
        reward_scale: factor on every reward of this client.
        fault: for studies only: how it misbehaves.
    """

    tasks: list[TaskConfig]
    reward_scale: float = 1.0
    fault: FaultConfig | None = None


@dataclass(frozen=True)
class RewardsConfig:
    """Where reward functions of your own are, and what becomes of a completion that they fail for.

    See `docs/rewards.md`.

    Args:
        on_error: a reward function that fails for a completion, or returns what is no finite number: `skip` takes the
            completion out of its group, `zero` counts 0 from that function, `raise` ends the client's round.
        folder: their modules are looked for in this folder, then in the working folder; null is the folder of the
            configuration.
    """

    on_error: Literal["skip", "zero", "raise"] = "skip"
    folder: str | None = None


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
