"""How good the global model is on prompts that no client trained on."""

from __future__ import annotations

import math

from fgrpo.client.owner import Client
from fgrpo.client.policy import Policy
from fgrpo.config import Config
from fgrpo.records import Evaluation


def evaluate(policy: Policy, client: Client, config: Config, round_number: int) -> Evaluation:
    """Decode every held-out prompt of a client greedily and score it; a completion without a score counts 0."""
    questions = client.held_out()
    values: list[float] = []
    correct: list[bool] = []
    for start in range(0, len(questions), config.evaluation.batch_size):
        batch = questions[start : start + config.evaluation.batch_size]
        prompts = [question.example.prompt for question in batch]
        rollouts = policy.sample(prompts, config.rollout, seed=0, greedy=True)
        scores = client.scores(batch, rollouts.answers())
        values += [0.0 if math.isnan(value) else value for value in scores.values]
        correct += scores.correct
    return Evaluation(
        client=client.name,
        round=round_number,
        prompts=len(questions),
        accuracy=sum(correct) / len(questions),
        score=sum(values) / len(questions),
    )
