"""Federated GRPO with adaptive aggregation: tasks, rollouts, local training, aggregation, rounds."""

__version__ = "0.1.0"
