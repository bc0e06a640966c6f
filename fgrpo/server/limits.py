"""What no honest reply exceeds, so that a number out of this world counts for nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fgrpo.config import Config
from fgrpo.errors import PayloadError
from fgrpo.records import Report
from fgrpo_kernels.codec import Encoded
from fgrpo_kernels.robust import norms


@dataclass(frozen=True)
class Limits:
    """The largest numbers that are believed.

    Attributes:
        sequences: completions in a round.
        length: tokens of a completion.
        rows: training rows of a client.
        reward: size of a reward's or a score's mean and standard deviation.
        prompts: that a held-out score is measured on.
        norm: L2 norm of a delta.
    """

    sequences: int
    length: int
    rows: int
    reward: float
    prompts: int
    norm: float

    @staticmethod
    def of(config: Config, size: int) -> Limits:
        """Return the limits of a run that trains `size` parameters.

        AdamW moves a parameter by about `train.lr` a step, whatever the gradient; so no honest delta is longer than a
        few times `steps * lr * sqrt(size)`.
        """
        train, limits = config.train, config.limits
        steps = train.local_steps * train.updates_per_rollout * train.minibatches
        norm = math.inf if limits.step is None else limits.step * steps * train.lr * math.sqrt(size)
        if config.privacy is not None:  # clipped, with noise whose length is known, and what rounding adds
            norm = 2 * config.privacy.clip * (1 + config.privacy.noise * math.sqrt(size))
        rollout = config.rollout
        again = rollout.max_groups or 4 * (rollout.informative_groups or 0)  # drawn to find groups that teach something
        sequences = train.local_steps * (rollout.prompts_per_step + again) * rollout.group_size
        prompts = config.aggregation.gain_prompts
        return Limits(sequences, rollout.max_new_tokens, limits.rows, limits.reward, prompts, norm)

    def check_report(self, report: Report) -> None:
        """Raise PayloadError for a report, whose fields have their types, that claims too much."""
        claims = [
            ("sequences", report.sequences, self.sequences),
            ("tokens", report.tokens, report.sequences * self.length),
            ("rows", report.rows, self.rows),
            ("reward_mean", report.reward_mean, self.reward),
            ("reward_std", report.reward_std, self.reward),
        ]
        if report.heldout is not None:
            claims += [
                ("heldout.mean", report.heldout.mean, self.reward),
                ("heldout.std", report.heldout.std, self.reward),
                ("heldout.count", report.heldout.count, self.prompts),
            ]
        for name, value, most in claims:
            if value is not None and abs(value) > most:
                raise PayloadError(f"report: {name} is {value:.6g}, expected at most {most:.6g}; see limits")

    def check_delta(self, delta: Encoded) -> None:
        """Raise PayloadError for a delta that is longer than training can make it."""
        if math.isinf(self.norm):
            return
        (norm,) = norms([delta])
        if not norm <= self.norm:
            raise PayloadError(
                f"payload: its delta has norm {norm:.3g}, expected at most {self.norm:.3g}; see limits.step"
            )
