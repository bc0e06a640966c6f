"""What a gain is measured on: rewards, held-out scores, and what the server finds out itself."""

from dataclasses import replace

import pytest
import torch

from fgrpo.checks import check
from fgrpo.client.owners import Owners
from fgrpo.config import AggregationConfig, CodecConfig, EvaluationConfig, FaultConfig, PrivacyConfig, TaskConfig
from fgrpo.engines.in_process import InProcess
from fgrpo.engines.workplace import Workplace
from fgrpo.errors import ConfigError, RunError
from fgrpo.federation import play_round
from fgrpo.records import GLOBAL, ClientHistory, Failure, Report, Score, ServerState, Trial, from_json, to_json
from fgrpo.server.aggregation import make_rule
from fgrpo.server.aggregation.gain import Trials
from fgrpo.server.geometry import Geometry
from fgrpo.server.history import updated_clients
from fgrpo.wire.parameters import fingerprint, flatten
from fgrpo.wire.payload import Header, pack
from fgrpo_kernels.codec import encode

NOWHERE = Geometry({}, {})
PUBLIC_TASKS = [
    TaskConfig(reasoning_gym="chain_sum", params={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}),
    TaskConfig(reasoning_gym="gcd", params={"min_value": 1, "max_value": 40}),
]


def report(client, reward=0.5, heldout=None):
    return Report(client, 3, 64, 500, reward, 0.3, 8.0, 0.1, {}, {}, heldout=heldout)


def gain(told, past=None, trials=None, **config):
    return make_rule(AggregationConfig("fgrpo", clip=10.0, **config), trials).gain(told, past)


def test_a_held_out_gain_is_over_the_own_past_in_its_own_unit():
    told, past = report("a", reward=99.0, heldout=Score(0.6, 0.4, 16)), ClientHistory(0.5, 0.2, 2)
    assert gain(told, past, gain="heldout") == pytest.approx(0.2)
    assert gain(told, past, gain="heldout", scale="deviation") == pytest.approx(0.5)
    assert gain(told, past, gain="heldout", scale="error") == pytest.approx(0.1 / (0.2 / 4))
    assert gain(told, None, gain="heldout") == 0


def test_the_servers_gain_is_over_the_global_model_and_needs_no_past():
    trials = Trials(Score(0.5, 0.4, 16), {"a": Score(0.6, 0.1, 16)})
    for past in (None, ClientHistory(7.0, 3.0, 2)):
        assert gain(report("a"), past, trials, gain="server") == pytest.approx(0.2)
        assert gain(report("a"), past, trials, gain="server", scale="error") == pytest.approx(0.1 / (0.4 / 4))


def test_the_history_keeps_what_gains_are_measured_on():
    told = report("a", reward=0.5, heldout=Score(0.9, 0.1, 8))
    past = {"a": ClientHistory(0.5, 0.5, 1)}
    for config, expected in (
        (AggregationConfig(decay=0.5, gain="heldout"), (0.7, 0.3)),
        (AggregationConfig(decay=0.5, gain="server"), (0.5, 0.4)),
    ):
        after = updated_clients(past, [told], {"a": 0.0}, {}, config)["a"]
        assert (after.baseline, after.deviation) == pytest.approx(expected)
        first = updated_clients({}, [told], {"a": 0.4}, {}, replace(config, smoothing=0.75))["a"]
        assert first.gain == pytest.approx(0.1)  # the server's own needs no past
        assert (first.baseline == 0.9) == (config.gain == "heldout")


def test_reports_of_earlier_runs_are_read():
    told = report("a", heldout=Score(0.9, 0.1, 8))
    assert from_json(to_json(told)) == told
    line = to_json(report("a"))
    del line["heldout"]
    assert from_json(line) == report("a")


class Watcher:
    def stage(self, who, stage):
        pass

    def record(self, record):
        pass


PAST = {"sums": ClientHistory(0.02, 0.05, 3), "gcd": ClientHistory(2.0, 4.0, 3)}


def played(policy, config, start_P):
    engine = InProcess(Workplace(config, Owners(config), policy))
    return play_round(replace(ServerState.initial(start_P), history=PAST), engine, config, Watcher())


@pytest.mark.parametrize("codec", ["int4", "none"])
def test_a_liar_about_its_reward_gets_more_weight_from_its_word_and_none_from_the_server(policy, small_config, codec):
    start_P, found = flatten(policy.model), {}
    for measured in ("reward", "server"):
        tasks = PUBLIC_TASKS if measured == "server" else []
        gain = {"gain": measured, "gain_prompts": 6, "gain_tasks": tasks}
        rule = AggregationConfig("fgrpo", tau=0.2, clip=10.0, cap=1.0, **gain)
        config = replace(
            small_config,
            aggregation=rule,
            codec=CodecConfig(codec),
            train=replace(small_config.train, local_steps=1, lr=1e-2),
        )
        lying = {**config.clients, "sums": replace(config.clients["sums"], fault=FaultConfig(inflate_reward=3.0))}
        ends = [played(policy, one, start_P) for one in (config, replace(config, clients=lying))]
        found[measured] = [(summary.weights["sums"], summary.gains) for _, summary, _ in ends]
    (honest, _), (lied, _) = found["reward"]
    assert lied > honest + 0.01
    (honest, gains), (lied, _) = found["server"]
    assert lied == honest
    assert any(gains.values()), "with these deltas the model answers otherwise"


class OneBreaks:
    """An engine whose clients' replies are real, and whose trials are told."""

    def __init__(self, engine, failing):
        self._engine, self._failing = engine, failing
        self.clients, self.manifest, self.downlink_bytes = engine.clients, engine.manifest, None

    def train(self, state, clients, observer):
        return self._engine.train(state, clients, observer)

    def try_out(self, state, payloads):
        assert list(payloads) == [GLOBAL, "gcd", "sums"]
        assert payloads[GLOBAL] is None
        for client in payloads:
            failed = client in self._failing
            yield Failure(client, "no numbers") if failed else Trial(client, Score(0.5, 0.5, 8))


def test_a_delta_that_cannot_be_tried_harms_only_its_own_reply(policy, small_config):
    config = replace(small_config, aggregation=AggregationConfig(gain="server", gain_tasks=PUBLIC_TASKS))
    engine = InProcess(Workplace(config, Owners(config), policy))
    start = ServerState.initial(flatten(policy.model))
    state, summary, accepted = play_round(start, OneBreaks(engine, ["sums"]), config, Watcher())
    assert summary.quarantined == {"sums": "the model with its delta cannot be scored: no numbers"}
    assert [reply.report.client for reply in accepted] == list(state.history) == ["gcd"]
    assert summary.weights == {"gcd": 1.0}
    with pytest.raises(RunError, match=r"^aggregation\.gain: the public prompts cannot be scored: no numbers"):
        play_round(start, OneBreaks(engine, [GLOBAL]), config, Watcher())


def test_a_delta_that_makes_the_model_answer_no_numbers_is_such_a_one(policy, small_config):
    rule = AggregationConfig(gain="server", gain_prompts=2, gain_tasks=PUBLIC_TASKS)
    config = replace(small_config, aggregation=rule)
    engine, start = InProcess(Workplace(config, Owners(config), policy)), ServerState.initial(flatten(policy.model))
    header = Header("sums", 1, engine.manifest.hash, fingerprint(start.params_P))
    huge = pack(encode(1e15 * torch.randn(len(start.params_P)), codec="none"), header)
    before_P = start.params_P.clone()
    alone, broken, again = engine.try_out(start, {GLOBAL: None, "sums": huge, "gcd": None})
    assert isinstance(broken, Failure)
    assert "logits are not numbers" in broken.reason
    assert again.score == alone.score, "it leaves nothing behind"
    assert alone.score.count == 2
    assert torch.equal(start.params_P, before_P)


def test_public_prompts_are_a_few_of_every_task_that_nobody_trains_on(small_config):
    rule = AggregationConfig(gain="server", gain_prompts=5, gain_tasks=PUBLIC_TASKS)
    owners = Owners(replace(small_config, aggregation=rule, evaluation=EvaluationConfig(prompts=2)))
    public = [question.example.prompt for question in owners["public prompts"].held_out()]
    assert len(public) == 6, "three of each task"
    assert owners.evaluated == ["sums", "gcd"]
    assert list(owners) == ["sums", "gcd"]
    drawn = {question.example.prompt for name in owners for question in owners[name].draw(0, 300)}
    assert not drawn & set(public)
    *_, told = owners.describe()
    assert (told.client, told.rows, told.held_out) == ("public prompts", 0, 6)
    own = [replace(PUBLIC_TASKS[0], test_split="test")]
    with pytest.raises(ConfigError, match=r"^aggregation.gain_tasks: they are the public prompts already"):
        Owners(replace(small_config, aggregation=replace(rule, gain_tasks=own)))


def test_every_client_holds_prompts_out_where_its_gain_is_measured_on_them(small_config):
    evaluation = EvaluationConfig(prompts=3, clients=1)
    few = Owners(replace(small_config, evaluation=evaluation))
    all_of_them = Owners(replace(small_config, evaluation=evaluation, aggregation=AggregationConfig(gain="heldout")))
    assert len(few.evaluated) == 1
    assert all_of_them.evaluated == few.evaluated
    assert [len(few[name].held_out()) for name in few].count(3) == 1
    assert [len(all_of_them[name].held_out()) for name in few] == [3, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"aggregation": AggregationConfig(gain="server")},
            "gain: the server scores replies on aggregation.gain_tasks",
        ),
        ({"aggregation": AggregationConfig(gain_tasks=PUBLIC_TASKS)}, "gain_tasks: only aggregation.gain server"),
        ({"aggregation": AggregationConfig(gain_prompts=0)}, "gain_prompts: got 0, expected at least 1"),
        (
            {
                "aggregation": AggregationConfig("fgrpo", gain="server", gain_tasks=PUBLIC_TASKS),
                "privacy": PrivacyConfig(1.0, 1.0),
            },
            "privacy: aggregation.gain server follows from single deltas",
        ),
    ],
    ids=["no-tasks", "unread-tasks", "no-prompts", "privacy"],
)
def test_what_makes_no_sense_is_refused(small_config, change, message):
    with pytest.raises(ConfigError, match=message):
        check(replace(small_config, **change))
