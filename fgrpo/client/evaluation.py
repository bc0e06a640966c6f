"""How good the global model is on prompts that no client trained on."""

from __future__ import annotations

from fgrpo.client.owners import Client
from fgrpo.client.policy import Policy
from fgrpo.config import Config
from fgrpo.records import Evaluation

_FULL_SCORE = 1.0 - 1e-6


def evaluate(policy: Policy, client: Client, config: Config, round_number: int) -> Evaluation:
    """Decode every held-out prompt of a client greedily and score it with the task's own verifier."""
    questions, scores = client.held_out(), []
    for start in range(0, len(questions), config.evaluation.batch_size):
        batch = questions[start : start + config.evaluation.batch_size]
        prompts = [question.example.prompt for question in batch]
        rollouts = policy.sample(prompts, config.rollout, seed=0, greedy=True)
        scores += [q.curriculum.score(q.example, text) for q, text in zip(batch, rollouts.completions, strict=True)]
    return Evaluation(
        client=client.name,
        round=round_number,
        prompts=len(scores),
        accuracy=sum(score >= _FULL_SCORE for score in scores) / len(scores),
        score=sum(scores) / len(scores),
    )
