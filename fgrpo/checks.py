"""What the values of a configuration must be, alone and together. A mistake is one line that names the key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fgrpo.config import AggregationConfig, Config, FaultConfig, RolloutConfig, TaskConfig
from fgrpo.errors import ConfigError
from fgrpo.participation import clients_per_round


def check(config: Config) -> None:
    """Raise ConfigError for the first value outside its range."""
    for key, accepts, expected in _RANGES:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part, None)
        if value is not None and not accepts(value):
            raise ConfigError(f"{key}: got {value}, expected {expected}")
    if (config.codec.scale, config.codec.rounding) == ("mse", "stochastic"):
        raise ConfigError("codec.scale: mse goes with codec.rounding nearest; stochastic rounding needs absmax")
    if config.quantization and config.lora is None:
        raise ConfigError(
            f"quantization: {config.quantization} weights cannot be trained; set lora, as in --lora.rank 16"
        )
    if config.quantization and config.gguf_file:
        raise ConfigError(f"quantization: {config.quantization} does not go with gguf_file, which is read unquantised")
    _check_budget(config.rollout)
    _check_gain(config.aggregation)
    if config.engine.stacked and config.lora is None:
        raise ConfigError("engine.stacked: only LoRA adapters can be stacked; set lora, as in --lora.rank 8")
    if config.engine.stacked and config.engine.workers:
        raise ConfigError(f"engine.stacked: it goes without workers, got engine.workers {config.engine.workers}")
    for name, client in config.clients.items():
        if client.reward_scale <= 0:
            raise ConfigError(f"clients.{name}.reward_scale: got {client.reward_scale}, expected more than 0")
        if any(task.weight <= 0 for task in client.tasks):
            raise ConfigError(f"clients.{name}.tasks: every weight must be more than 0")
        _check_fault(name, client.fault)
    if config.partition is not None and config.partition.task.diagnostic is not None:
        raise ConfigError("partition.task.diagnostic: it is for a task of one client; list the clients under clients")
    for key, tasks in tasks_by_key(config):
        if any(task.diagnostic is not None and not 0 <= task.diagnostic.p <= 1 for task in tasks):
            raise ConfigError(f"{key}: diagnostic.p must be from 0 to 1")
    _check_privacy(config)
    _check_robust(config, clients_per_round(config))


def _check_budget(rollout: RolloutConfig) -> None:
    """Raise ConfigError for a budget that nothing would read, or that is too small from the start."""
    if rollout.max_groups is None:
        return
    if rollout.informative_groups is None:
        raise ConfigError("rollout.max_groups: only rollout.informative_groups reads it, and that is null")
    if rollout.max_groups < rollout.informative_groups:
        raise ConfigError(
            f"rollout.max_groups: got {rollout.max_groups}, expected at least rollout.informative_groups, "
            f"{rollout.informative_groups}"
        )


def _check_gain(aggregation: AggregationConfig) -> None:
    """Raise ConfigError for public prompts that are missing, or that nobody would be asked."""
    if aggregation.gain == "server" and not aggregation.gain_tasks:
        raise ConfigError("aggregation.gain: the server scores replies on aggregation.gain_tasks, and there are none")
    if aggregation.gain != "server" and aggregation.gain_tasks:
        raise ConfigError(
            f"aggregation.gain_tasks: only aggregation.gain server reads them, got gain {aggregation.gain}"
        )


def _check_fault(name: str, fault: FaultConfig | None) -> None:
    """Raise ConfigError for a fault that is none, or that no number can be computed with."""
    if fault is None:
        return
    if fault.inflate_reward is None and fault.noise is None:
        raise ConfigError(f"clients.{name}.fault: set inflate_reward, noise or both")
    for key, value in (("inflate_reward", fault.inflate_reward), ("noise", fault.noise)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"clients.{name}.fault.{key}: got {value}, expected more than 0, and finite")


def tasks_by_key(config: Config) -> Iterator[tuple[str, list[TaskConfig]]]:
    """Yield the tasks that a configuration names, with the key under which they are."""
    yield from ((f"clients.{name}.tasks", client.tasks) for name, client in config.clients.items())
    if config.partition is not None:
        yield "partition.task", [config.partition.task]
    yield "evaluation.tasks", config.evaluation.tasks
    yield "aggregation.gain_tasks", config.aggregation.gain_tasks


def _check_privacy(config: Config) -> None:
    """Raise ConfigError for what would make the epsilon of `privacy` untrue."""
    if config.privacy is None:
        return
    if config.aggregation.rule not in _CAPPED:
        raise ConfigError(
            f"privacy: aggregation.rule {config.aggregation.rule} sets no bound to a client's weight, or weighs by "
            f"single deltas; use {' or '.join(_CAPPED)}"
        )
    if config.aggregation.gain == "server":
        raise ConfigError("privacy: aggregation.gain server follows from single deltas; use reward or heldout")
    if config.aggregation.robust != "none":
        raise ConfigError(f"privacy: aggregation.robust {config.aggregation.robust} is no weighted mean; use none")
    if config.server.step not in (None, *_BLIND):
        raise ConfigError(
            f"privacy: server.step {config.server.step} follows from single deltas; use {' or '.join(_BLIND)}"
        )


def _check_robust(config: Config, clients: int | None) -> None:
    """Raise ConfigError for a parameter of `aggregation.robust` that is missing or that nothing would read."""
    robust = config.aggregation.robust
    for key, reader in (("max_norm", "clipped_mean"), ("trim", "trimmed_mean")):
        value = getattr(config.aggregation, key)
        if robust == reader and value is None:
            raise ConfigError(f"aggregation.{key}: aggregation.robust {reader} needs it")
        if robust != reader and value is not None:
            raise ConfigError(f"aggregation.{key}: only aggregation.robust {reader} reads it, got robust {robust}")
    if robust not in ("trimmed_mean", "median") or clients is None:
        return
    from fgrpo_kernels.robust import MOST_SORTED  # here, as it brings torch: settings are read without

    if clients > MOST_SORTED:
        raise ConfigError(f"aggregation.robust: {robust} sorts at most {MOST_SORTED} clients, got {clients}")
    if config.aggregation.trim is not None and clients <= 2 * config.aggregation.trim:
        raise ConfigError(f"aggregation.trim: {config.aggregation.trim} at each end leave nothing of {clients} clients")


def _at_least(bound: float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value >= bound), f"at least {bound}"


def _above_0() -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value > 0), "more than 0"


def _from_0_below_1() -> tuple[Callable[[Any], bool], str]:
    return (lambda value: 0 <= value < 1), "from 0 to below 1"


_CAPPED = ("fgrpo", "uniform")  # rules that bound every client's weight, whatever its delta
_BLIND = ("fixed", "decay")  # step sizes that no delta decides


_RANGES = [
    ("rounds", *_at_least(1)),
    ("rollout.prompts_per_step", *_at_least(1)),
    ("rollout.group_size", *_at_least(2)),
    ("rollout.max_new_tokens", *_at_least(1)),
    ("rollout.temperature", *_above_0()),
    ("rollout.informative_groups", *_at_least(1)),
    ("train.local_steps", *_at_least(1)),
    ("train.updates_per_rollout", *_at_least(1)),
    ("train.minibatches", *_at_least(1)),
    ("train.max_tokens", *_at_least(1)),
    ("train.lr", *_above_0()),
    ("train.weight_decay", *_at_least(0)),
    ("train.max_grad_norm", *_at_least(0)),
    ("train.clip_low", *_above_0()),
    ("train.clip_high", *_above_0()),
    ("train.beta", *_at_least(0)),
    ("train.proximal", *_at_least(0)),
    ("codec.block", lambda block: block in (32, 64, 128, 256, 512, 1024), "a power of two from 32 to 1024"),
    ("aggregation.tau", *_above_0()),
    ("aggregation.clip", *_above_0()),
    ("aggregation.cap", (lambda cap: 0 < cap <= 1), "above 0, at most 1"),
    ("aggregation.floor", (lambda floor: 0 <= floor <= 1), "from 0 to 1"),
    ("aggregation.decay", *_from_0_below_1()),
    ("aggregation.smoothing", *_from_0_below_1()),
    ("aggregation.gain_prompts", *_at_least(1)),
    ("aggregation.max_norm", *_above_0()),
    ("aggregation.trim", *_at_least(1)),
    ("server.lr", *_above_0()),
    ("server.momentum", *_from_0_below_1()),
    ("server.beta2", *_from_0_below_1()),
    ("server.eps", *_above_0()),
    ("evaluation.prompts", *_at_least(1)),
    ("evaluation.every", *_at_least(0)),
    ("evaluation.batch_size", *_at_least(1)),
    ("evaluation.clients", *_at_least(1)),
    ("evaluation.samples", *_at_least(0)),
    ("participation.fraction", (lambda fraction: 0 < fraction <= 1), "above 0, at most 1"),
    ("participation.clients_per_round", *_at_least(1)),
    ("engine.workers", *_at_least(0)),
    ("engine.threads", *_at_least(1)),
    ("flower.min_clients", *_at_least(1)),
    ("flower.deadline", *_above_0()),
    ("flower.min_replies", *_at_least(1)),
    ("limits.step", *_above_0()),
    ("limits.rows", *_at_least(1)),
    ("limits.reward", *_above_0()),
    ("privacy.clip", *_above_0()),
    ("privacy.noise", *_above_0()),
    ("privacy.delta", (lambda delta: 0 < delta < 1), "above 0, below 1"),
    ("lora.rank", *_at_least(1)),
    ("partition.clients", *_at_least(1)),
    ("partition.alpha", *_above_0()),
]
