"""How good the global model is on prompts that no client trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

from fgrpo.client.owner import Client, Question
from fgrpo.client.policy import Policy
from fgrpo.config import Config
from fgrpo.records import Chat, Evaluation, Report, Sample, Score
from fgrpo.stopwatch import Stopwatch

_SAMPLE_LENGTH = 4000  # characters of a text that a sample keeps


def evaluate(policy: Policy, client: Client, config: Config, round_number: int) -> Evaluation:
    """Decode every held-out prompt of a client greedily and score it; a completion without a score counts 0."""
    questions = client.held_out()
    answers = _answer(policy, client, questions, config)
    return Evaluation(
        client=client.name,
        round=round_number,
        prompts=len(questions),
        accuracy=sum(answers.correct) / len(questions),
        score=sum(answers.values) / len(questions),
        samples=tuple(
            _sample(questions[i], answers.completions[i], answers.values[i], answers.correct[i])
            for i in spread(len(questions), config.evaluation.samples)
        ),
        unscored=answers.unscored,
    )


def score(policy: Policy, client: Client, config: Config) -> Score:
    """Score the model as `evaluate` does, on `aggregation.gain_prompts` of what a client holds out, or all of less."""
    held_out = client.held_out()
    questions = [held_out[i] for i in spread(len(held_out), config.aggregation.gain_prompts)]
    values = _answer(policy, client, questions, config).values
    return Score(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))


def with_heldout(report: Report, policy: Policy, client: Client, config: Config, stopwatch: Stopwatch) -> Report:
    """Return a client's report with the score of the model that it trained, where gains are measured on that."""
    if config.aggregation.gain != "heldout":
        return report
    with stopwatch("evaluate"):
        return replace(report, heldout=score(policy, client, config))


@dataclass
class _Answers:
    """What became of questions, in their order."""

    values: list[float] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)
    completions: list[str] = field(default_factory=list)
    unscored: int = 0


def _answer(policy: Policy, client: Client, questions: Sequence[Question], config: Config) -> _Answers:
    answers = _Answers()
    for start in range(0, len(questions), config.evaluation.batch_size):
        batch = questions[start : start + config.evaluation.batch_size]
        prompts = [question.example.prompt for question in batch]
        rollouts = policy.sample(prompts, config.rollout, seed=0, greedy=True)
        scores = client.scores(batch, rollouts.answers())
        answers.unscored += sum(map(math.isnan, scores.values))
        answers.values += [0.0 if math.isnan(value) else value for value in scores.values]
        answers.correct += scores.correct
        answers.completions += rollouts.completions
    return answers


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
