"""The configuration of a run: typed, read from YAML, every key overridable on the command line.

A field's docstring is its help text. Nothing here builds or loads anything.
"""

from fgrpo.config.data import (
    NAMED_REWARDS,
    ClientConfig,
    DiagnosticConfig,
    FaultConfig,
    PartitionConfig,
    RewardsConfig,
    TaskConfig,
)
from fgrpo.config.privacy import PrivacyConfig
from fgrpo.config.remote import FlowerConfig, LimitsConfig
from fgrpo.config.run import PACKAGED_MODELS, Config, EngineConfig, EvaluationConfig
from fgrpo.config.server import AggregationConfig, CodecConfig, ParticipationConfig, ServerConfig
from fgrpo.config.training import LoraConfig, RolloutConfig, TrainConfig

__all__ = [
    "NAMED_REWARDS",
    "PACKAGED_MODELS",
    "AggregationConfig",
    "ClientConfig",
    "CodecConfig",
    "Config",
    "DiagnosticConfig",
    "EngineConfig",
    "EvaluationConfig",
    "FaultConfig",
    "FlowerConfig",
    "LimitsConfig",
    "LoraConfig",
    "ParticipationConfig",
    "PartitionConfig",
    "PrivacyConfig",
    "RewardsConfig",
    "RolloutConfig",
    "ServerConfig",
    "TaskConfig",
    "TrainConfig",
]
