"""How good the global model is on prompts that no client trained on."""

from __future__ import annotations

import math

from fgrpo.client.owner import Client, Question
from fgrpo.client.policy import Policy
from fgrpo.config import Config
from fgrpo.records import Chat, Evaluation, Sample

_SAMPLE_LENGTH = 4000  # characters of a text that a sample keeps


def evaluate(policy: Policy, client: Client, config: Config, round_number: int) -> Evaluation:
    """Decode every held-out prompt of a client greedily and score it; a completion without a score counts 0."""
    questions = client.held_out()
    values: list[float] = []
    correct: list[bool] = []
    completions: list[str] = []
    for start in range(0, len(questions), config.evaluation.batch_size):
        batch = questions[start : start + config.evaluation.batch_size]
        prompts = [question.example.prompt for question in batch]
        rollouts = policy.sample(prompts, config.rollout, seed=0, greedy=True)
        scores = client.scores(batch, rollouts.answers())
        values += [0.0 if math.isnan(value) else value for value in scores.values]
        correct += scores.correct
        completions += rollouts.completions
    return Evaluation(
        client=client.name,
        round=round_number,
        prompts=len(questions),
        accuracy=sum(correct) / len(questions),
        score=sum(values) / len(questions),
        samples=tuple(
            _sample(questions[i], completions[i], values[i], correct[i])
            for i in spread(len(questions), config.evaluation.samples)
        ),
    )


def spread(count: int, wanted: int) -> list[int]:
    """Return so many positions among `count`, evenly spread: the questions of several tasks lie one after another."""
    wanted = min(count, wanted)
    return [at * count // wanted for at in range(wanted)]


def _sample(question: Question, completion: str, score: float, correct: bool) -> Sample:
    example = question.example
    return Sample(_cut(_text(example.prompt)), _cut(example.answer), _cut(completion), score, correct)


def _text(prompt: str | Chat) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages)


def _cut(text: str) -> str:
    return text if len(text) <= _SAMPLE_LENGTH else f"{text[:_SAMPLE_LENGTH]} … ({len(text):,} characters)"
