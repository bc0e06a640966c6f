"""Federated GRPO with adaptive aggregation: tasks, rollouts, local training, aggregation, rounds."""
