"""Verdicts that teach nothing, or the opposite: for studies of what such a client does to a federation.

They take the place of a task's own rewards, in evaluation too. See `docs/test_bed.md`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fgrpo.client.tasks.scoring import Outcome, RewardFunction, WeightedReward
from fgrpo.config import DiagnosticConfig
from fgrpo.records import Chat, Completion, Example
from fgrpo.seeds import derive_seed

_SEEDS = 2**48  # of `derive_seed`


@dataclass(frozen=True)
class Coin:
    """1.0 with probability `p`, whatever the completion says, else 0.0.

    A toss is a function of the seed, the prompt, the completion and how often that completion was given to the prompt
    before in the same batch: equal completions of a group get tosses of their own, and no completion is a lucky one.
    """

    p: float
    seed: int
    name: str = "coin"

    def __call__(self, examples: Sequence[Example], completions: Sequence[Completion]) -> list[Outcome]:
        before: Counter[tuple[str | Chat, str]] = Counter()
        outcomes: list[Outcome] = []
        for example, completion in zip(examples, completions, strict=True):
            said = (example.prompt, completion.text)
            toss = derive_seed(self.seed, "coin", str(example.prompt), completion.text, before[said])
            outcomes.append(float(toss < self.p * _SEEDS))
            before[said] += 1
        return outcomes


@dataclass(frozen=True)
class Constant:
    """The same reward for everything."""

    value: float
    name: str = "constant"

    def __call__(self, examples: Sequence[Example], completions: Sequence[Completion]) -> list[Outcome]:
        return [self.value] * len(completions)


@dataclass(frozen=True)
class Negated:
    """1 minus what another function says: it prefers wrong answers."""

    function: RewardFunction

    @property
    def name(self) -> str:
        return f"not {self.function.name}"

    def __call__(self, examples: Sequence[Example], completions: Sequence[Completion]) -> list[Outcome]:
        outcomes = self.function(examples, completions)
        return [1.0 - outcome if isinstance(outcome, float) else outcome for outcome in outcomes]


def diagnosed(
    rewards: Sequence[WeightedReward], diagnostic: DiagnosticConfig | None, seed: int
) -> Sequence[WeightedReward]:
    """Return what takes the place of a task's rewards."""
    if diagnostic is None:
        return rewards
    match diagnostic.reward:
        case "coin":
            return (WeightedReward(Coin(diagnostic.p, seed)),)
        case "saturated":
            return (WeightedReward(Constant(1.0)),)
        case "hopeless":
            return (WeightedReward(Constant(0.0)),)
        case "negated":
            return tuple(WeightedReward(Negated(reward.function), reward.weight) for reward in rewards)
