"""What travels between the stages of a round: small frozen records, in the order in which they come to be.

Shape suffixes: B sequences, L prompt and completion tokens, T completion tokens, P trainable parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fgrpo.last_deltas import LastDeltas
from fgrpo.residuals import Residuals
from fgrpo_kernels.codec import Encoded


@dataclass(frozen=True)
class Chat:
    """A prompt of several messages. It is kept as JSON, so it compares and hashes as a text does."""

    json: str

    @staticmethod
    def of(messages: Sequence[Mapping[str, Any]]) -> Chat:
        return Chat(json.dumps(list(messages)))

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages as a chat template takes them, each with its role and content."""
        return json.loads(self.json)


@dataclass(frozen=True)
class Example:
    """One prompt with what its verifier needs.

    Attributes:
        prompt: the user's text, or a chat, before any chat template.
        answer: the reference answer, as text; empty where the task has none.
        entry: the verifier's own record of the question (a reasoning-gym entry, a dataset row).
    """

    prompt: str | Chat
    answer: str
    entry: Mapping[str, Any]


@dataclass(frozen=True)
class Completion:
    """What a model answered, as reward functions see it.

    Attributes:
        text: decoded, without special tokens.
        token_ids: the sampled tokens up to and including the end-of-sequence token.
    """

    text: str
    token_ids: Sequence[int] = ()


@dataclass(frozen=True)
class Rollouts:
    """Sampled completions in CPU memory, padded: prompts on the left, completions on the right.

    Attributes:
        tokens_BL: int64, prompt and completion.
        attention_BL: int64, 1 where a token is real.
        mask_BT: bool, True for the completion's tokens up to and including the first end-of-sequence token.
        old_logp_BT: float32, log-probability (nats) of each token under the distribution it was sampled from; 0 where
            mask_BT is False.
        completions: B decoded texts without special tokens.
    """

    tokens_BL: Tensor
    attention_BL: Tensor
    mask_BT: Tensor
    old_logp_BT: Tensor
    completions: tuple[str, ...]

    @property
    def prompt_length(self) -> int:
        return self.tokens_BL.shape[1] - self.mask_BT.shape[1]

    def answers(self) -> list[Completion]:
        """Return the completions as reward functions see them."""
        tokens_BT = self.tokens_BL[:, self.prompt_length :]
        kept = [tokens_T[mask_T].tolist() for tokens_T, mask_T in zip(tokens_BT, self.mask_BT, strict=True)]
        return [Completion(text, ids) for text, ids in zip(self.completions, kept, strict=True)]

    def without(self, left_out_B: Tensor) -> Rollouts:
        """Return the rollouts with none of some completions' tokens counted: bool, True leaves a completion out."""
        return replace(self, mask_BT=self.mask_BT & ~left_out_B[:, None])

    def rows(self, index: Tensor) -> Rollouts:
        """Return the sequences at an int64 index."""
        return Rollouts(
            self.tokens_BL[index],
            self.attention_BL[index],
            self.mask_BT[index],
            self.old_logp_BT[index],
            tuple(self.completions[i] for i in index.tolist()),
        )


@dataclass(frozen=True)
class Score:
    """A mean over completions, and what tells how certain it is.

    Attributes:
        std: of single values.
        count: of the completions.
    """

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class Report:
    """What a client tells about its local training; aggregation rules see nothing else.

    Attributes:
        sequences: completions that have a reward, whether their groups taught something or not.
        tokens: their completion tokens.
        reward_mean, reward_std: over all these sequences of the round, in the client's own reward scale.
        completion_length: mean number of completion tokens.
        degenerate: fraction of prompt groups whose rewards were all equal, and which taught nothing.
        metrics: means over optimisation steps of what the loss measured (see `fgrpo_kernels.grpo_loss`).
        seconds: time per stage: rollout, reward, train, evaluate (with `heldout`), encode.
        rows: different training rows that the client has; None where a task makes its examples up without end.
        unrewarded: completions without a reward, which left their groups.
        reward_failures: how often a reward function failed for a completion.
        reward_failure: the first such failure in one line, or an empty text.
        informative: completions in prompt groups whose rewards were not all equal: those that taught something.
        groups: prompt groups drawn.
        heldout: the trained model's score on held-out prompts, greedy decoding, before the client's reward scale; None
            unless gains are measured on that.
    """

    client: str
    round: int
    sequences: int
    tokens: int
    reward_mean: float
    reward_std: float
    completion_length: float
    degenerate: float
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    rows: int | None = None
    unrewarded: int = 0
    reward_failures: int = 0
    reward_failure: str = ""
    informative: int = 0
    groups: int = 0
    heldout: Score | None = None


@dataclass(frozen=True)
class Reply:
    """A client's answer to a round: a report and the serialised, compressed delta."""

    client: str
    report: Report
    payload: bytes


@dataclass(frozen=True)
class Failure:
    """A client that could not answer.

    Attributes:
        reason: why, in one line.
        traceback: for the run's log; empty where there is none to show.
        kind: the exception's name; empty where there was none.
    """

    client: str
    reason: str
    traceback: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Accepted:
    """A reply that passed validation, its payload unpacked."""

    report: Report
    delta: Encoded
    payload: bytes


@dataclass(frozen=True)
class ClientHistory:
    """A client's personalised baseline, kept by the server.

    Attributes:
        baseline: exponential moving average of the client's mean reward, or of its held-out score where gains are
            measured on that.
        deviation: exponential moving average of the standard deviation of the same.
        rounds: accepted replies so far.
        gain: exponential moving average of its relative gains.
        agreement: exponential moving average of the cosine of its delta with its own last one; None while no rule has
            asked for it, or the client has no earlier delta.
        last: the round of the last one; what the client keeps from it is what it goes on from.
    """

    baseline: float
    deviation: float
    rounds: int
    gain: float = 0.0
    agreement: float | None = None
    last: int = 0


@dataclass(frozen=True)
class StepHistory:
    """What the server keeps of its own steps.

    Attributes:
        rounds: steps so far.
        agreement: exponential moving average of the clients' mean agreement; None while nobody asked for one.
    """

    rounds: int = 0
    agreement: float | None = None


@dataclass(frozen=True)
class ClientData:
    """What a client has to learn from; told once, before the first round.

    Attributes:
        rows: training rows; None where a task makes its examples up without end, 0 for a client that takes no part.
        held_out: prompts held out for evaluation, those of a test set of its own among them.
        labels: training rows per value of the column that the data were split by; empty without one.
        files: a digest per dataset, so that a change under a run is noticed.
        notes: what a person should know, one line each.
        round: always 0, before training.
    """

    client: str
    rows: int | None
    held_out: int
    labels: Mapping[str, int]
    files: Mapping[str, str]
    notes: Sequence[str] = ()
    round: int = 0


# What the run's own prompts are called where clients are named; none of theirs has a space.
TEST_SET, PUBLIC = "test set", "public prompts"
OF_THE_RUN = (TEST_SET, PUBLIC)
GLOBAL = "global model"  # that without anybody's delta, where models are named by whose delta they have on top


@dataclass(frozen=True)
class Sample:
    """A prompt and what the global model answers, as texts for people.

    Attributes:
        prompt: as it was asked, before any chat template; the messages of a chat one below the other.
        answer: the reference answer; empty where the task has none.
        score: the verifier's, before the client's reward scale.
    """

    prompt: str
    answer: str
    completion: str
    score: float
    correct: bool


@dataclass(frozen=True)
class Evaluation:
    """The global model on one client's held-out prompts, or on the run's own test set, greedy decoding.

    Attributes:
        client: whose prompts; `TEST_SET` for the run's.
        round: 0 is the model before training.
        accuracy: fraction of prompts with the verifier's full score.
        score: mean of the verifier's score, before the client's reward scale.
        samples: some of the prompts with their answers, the same ones every time; none unless they are asked for.
        unscored: answers for which no reward could be told; they count 0.
    """

    client: str
    round: int
    prompts: int
    accuracy: float
    score: float
    samples: Sequence[Sample] = ()
    unscored: int = 0


@dataclass(frozen=True)
class Trial:
    """The server's own score of a model on the run's public prompts, greedy decoding.

    Attributes:
        client: whose delta is on top of the global model; `GLOBAL` for nobody's.
    """

    client: str
    score: Score


@dataclass(frozen=True)
class RoundSummary:
    """What a round did, as written to `metrics.jsonl`.

    Attributes:
        weights: the weight per accepted client that applied; they sum to 1, and are equal where `robust` has none.
        gains: relative performance gain per accepted client (0 where it has no baseline yet).
        quarantined: reason per client whose reply was not used.
        uplink_bytes: payload length per accepted client.
        epsilon: what the models so far have told of a client at most, at `privacy.delta`; None without `privacy`.
        downlink_bytes: what was sent to bring a client's machine the model, by client; empty where nothing had to be.
        dense_bytes: what one float32 delta would take.
        update_norm: L2 norm of the step the server took.
        seconds: time per stage: clients, validate, trial (where the server tries replies out), aggregate, server_step.
        robust: how the deltas were combined: none, clipped_mean, trimmed_mean or median.
        delta_norms: L2 norm per accepted client's delta before clipping; empty unless `clipped_mean`.
        step_size: factor of the server's learning rate.
        agreement: cosine of an accepted client's delta with its own last one; empty unless a rule asks for it.
        ended: when, by the server's clock, in UTC as ISO 8601; empty in runs from before this was recorded.
    """

    round: int
    weights: Mapping[str, float]
    gains: Mapping[str, float]
    quarantined: Mapping[str, str]
    uplink_bytes: Mapping[str, int]
    dense_bytes: int
    update_norm: float
    seconds: Mapping[str, float]
    robust: str = "none"
    delta_norms: Mapping[str, float] = field(default_factory=dict)
    step_size: float = 1.0
    agreement: Mapping[str, float] = field(default_factory=dict)
    ended: str = ""
    downlink_bytes: Mapping[str, int] = field(default_factory=dict)
    epsilon: float | None = None


@dataclass(frozen=True)
class ServerState:
    """All that a round needs of the rounds before it; on disk after every round.

    Attributes:
        round: rounds completed.
        params_P: float32, the global trainable parameters in the manifest's order.
        optimizer: the server optimiser's own vectors, each float32 [P].
        history: personalised baselines.
        residuals: each client's error-feedback residual, float32 [P], of those that have taken part.
        step: what is kept of the server's steps.
        last_deltas: each client's last accepted delta, where a rule compares with it; empty where none does.
        spent: of the clients' privacy, see `fgrpo.server.privacy`.
    """

    round: int
    params_P: Tensor
    optimizer: Mapping[str, Tensor]
    history: Mapping[str, ClientHistory]
    residuals: Residuals
    step: StepHistory = StepHistory()
    last_deltas: LastDeltas = field(default_factory=LastDeltas)
    spent: float = 0.0

    @staticmethod
    def initial(params_P: Tensor) -> ServerState:
        return ServerState(0, params_P.to(torch.float32), {}, {}, Residuals())


Record = Report | Evaluation | RoundSummary | ClientData
_TYPES: dict[str, type] = {"report": Report, "evaluation": Evaluation, "round": RoundSummary, "data": ClientData}


def to_json(record: Record) -> dict[str, Any]:
    """Return a record as a line of `metrics.jsonl` holds it: its fields, and its `type`."""
    (name,) = (name for name, kind in _TYPES.items() if isinstance(record, kind))
    return {"type": name, **asdict(record)}


def from_json(line: Mapping[str, Any]) -> Record:
    """Return the record that a line of `metrics.jsonl` holds."""
    fields = dict(line)
    if isinstance(fields.get("heldout"), dict):
        fields["heldout"] = Score(**fields["heldout"])
    if "samples" in fields:
        fields["samples"] = tuple(Sample(**sample) for sample in fields["samples"])
    record: Record = _TYPES[fields.pop("type")](**fields)
    return record
