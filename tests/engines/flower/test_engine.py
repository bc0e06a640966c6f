"""Clients on nodes: a bad reply, a late one or none harms only its own client, and the round goes on."""

import gc
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from flwr.app import Error, Message, RecordDict
from honest import Honest, Silent, delta, payload, report
from local_grid import LocalGrid

from fgrpo.client.policy import Policy
from fgrpo.config import AggregationConfig, FlowerConfig, ParticipationConfig
from fgrpo.engines.flower.engine import Flower
from fgrpo.engines.flower.messages import Answer
from fgrpo.errors import RunError
from fgrpo.federation import play_round
from fgrpo.records import Evaluation, Failure, Reply, ServerState
from fgrpo.wire.parameters import Manifest
from fgrpo.wire.payload import Header, pack
from fgrpo_kernels.codec import Encoded, aggregate, encode

HASTE = FlowerConfig(min_clients=3, deadline=0.3)


class Watcher:
    def stage(self, who, stage):
        pass

    def record(self, record):
        pass


@pytest.fixture(scope="module")
def config(small_config):
    return replace(small_config, clients={}, flower=FlowerConfig(min_clients=3))


@pytest.fixture(scope="module")
def manifest(config):
    return Manifest.of(Policy.load(config).model)


@pytest.fixture
def grid(manifest):
    grid = LocalGrid()
    for number, name in enumerate("abc"):
        grid.nodes[number] = Honest(manifest, name)
    return grid


def play(engine, config, rounds=1, state=None):
    state, summaries = state or ServerState.initial(engine.initial_parameters()), []
    for _ in range(rounds):
        state, summary, _ = play_round(state, engine, config, Watcher())
        summaries.append(summary)
    return state, summaries


def moved(engine, *clients, number=1):
    """Where a round with these replies leads."""
    size = engine.manifest.size
    encodeds = [encode(delta(client, number, size)) for client in clients]
    return engine.initial_parameters() + aggregate(encodeds, [1 / len(clients)] * len(clients))


def test_the_server_tries_replies_out_itself(grid, config, small_config):
    tasks = small_config.clients["sums"].tasks
    rule = AggregationConfig("fgrpo", clip=10.0, gain="server", gain_prompts=6, gain_tasks=tasks)
    engine = Flower(grid, replace(config, aggregation=rule))
    asks = sum(len(node.asks) for node in grid.nodes.values())
    _, (summary,) = play(engine, replace(config, aggregation=rule))
    assert any(summary.gains.values()), "with these deltas the model answers otherwise"
    assert len(set(summary.weights.values())) > 1, "all report the same"
    assert sum(len(node.asks) for node in grid.nodes.values()) == asks + 3, "nobody is asked for more than to train"
    *_, told = engine.describe()
    assert (told.client, told.held_out) == ("public prompts", 6)


# What a hostile or broken node makes of an honest reply, and what is said of it. `ask` is the message to it.
def sent(**changes):
    return lambda reply, ask, manifest: replace(reply, **changes)


def told(**changes):
    return lambda reply, ask, manifest: replace(reply, report=replace(reply.report, **changes))


def header(**changes):
    return lambda reply, ask, manifest: replace(
        reply,
        payload=payload(delta("c", ask.round, manifest.size), "c", ask.round, manifest, ask.shipment.model, **changes),
    )


def of_delta(change):
    return lambda reply, ask, manifest: replace(
        reply,
        payload=payload(change(delta("c", ask.round, manifest.size)), "c", ask.round, manifest, ask.shipment.model),
    )


def with_value(value):
    """A payload that no encoder makes: a float32 delta with this value in it."""

    def made(reply, ask, manifest):
        delta_P = delta("c", ask.round, manifest.size)
        delta_P[7] = value
        raw = Encoded(delta_P.view(torch.uint8), torch.empty(0, dtype=torch.bfloat16), "none", 64, manifest.size)
        return replace(reply, payload=pack(raw, Header("c", ask.round, manifest.hash, ask.shipment.model)))

    return made


def cut(reply, ask, manifest):
    return replace(reply, payload=reply.payload[:-100])


def altered(reply, ask, manifest):
    return replace(reply, payload=reply.payload[:-9] + bytes([reply.payload[-9] ^ 1]) + reply.payload[-8:])


BAD = [
    pytest.param(with_value(float("nan")), "NaN|nan|finite", id="nan"),
    pytest.param(with_value(float("inf")), "inf|finite", id="inf"),
    pytest.param(of_delta(lambda delta_P: delta_P[:-64]), "size is", id="shape"),
    pytest.param(header(manifest="0" * 32), "manifest is", id="manifest"),
    pytest.param(header(base="0" * 32), "base is", id="base"),
    pytest.param(header(round=7), "round is 7", id="round"),
    pytest.param(header(client="a"), "client is 'a'", id="another-clients"),
    pytest.param(of_delta(lambda delta_P: 1e6 * delta_P), "norm", id="scale"),
    pytest.param(of_delta(lambda delta_P: 1e30 * delta_P), "norm", id="scale-1e30"),
    pytest.param(told(sequences=10**6), "sequences", id="sequences"),
    pytest.param(told(tokens=10**9), "tokens", id="tokens"),
    pytest.param(told(rows=10**12), "rows", id="rows"),
    pytest.param(told(reward_mean=1e9), "reward_mean", id="reward"),
    pytest.param(told(reward_mean=float("nan")), "reward_mean", id="reward-nan"),
    pytest.param(told(round=9), "report: of client", id="report-of-another-round"),
    pytest.param(told(metrics={"loss": "high"}), "metrics", id="metrics"),
    pytest.param(cut, "payload: ", id="cut"),
    pytest.param(altered, "checksum", id="altered"),
    pytest.param(sent(payload=b"\0" * (8 << 20)), "expected at most", id="oversized"),
    pytest.param(sent(payload=b""), "not a safetensors file", id="empty"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_a_bad_reply_is_quarantined_and_the_round_goes_on(grid, config, manifest, bad, reason):
    class Bad(Honest):
        def result(self, client, ask):
            result = super().result(client, ask)
            return bad(result, ask, self.manifest) if isinstance(result, Reply) else result

    grid.nodes[2] = Bad(manifest, "c")
    engine = Flower(grid, config)
    state, (summary,) = play(engine, config)
    assert list(summary.quarantined) == ["c"]
    assert re.search(reason, summary.quarantined["c"])
    assert len(summary.quarantined["c"]) < 500
    assert torch.equal(state.params_P, moved(engine, "a", "b"))
    assert state.history.keys() == {"a", "b"}


def stranger(answer, ask):
    """An answer that also speaks for another node's client."""
    reply = answer.results[0]
    return replace(answer, results=(reply, Reply("a", report("a", ask.round), reply.payload)))


BAD_ANSWERS = [
    pytest.param(lambda answer, ask: RecordDict(), "c", "no text and bytes", id="no-records"),
    pytest.param(lambda answer, ask: b"\xff\x00 not JSON", "c", "not one of an fgrpo node", id="garbage"),
    pytest.param(lambda answer, ask: replace(answer, results=()), "c", "did not train", id="nothing"),
    pytest.param(
        lambda answer, ask: replace(answer, results=(Evaluation("c", 1, 8, 0.5, 0.5),)),
        "c",
        "did not train",
        id="other",
    ),
    pytest.param(
        lambda answer, ask: replace(answer, results=(Failure("c", "out of memory"),)),
        "c",
        "out of memory",
        id="failure",
    ),
    pytest.param(lambda answer, ask: replace(answer, results=2 * answer.results), "c", "second reply", id="duplicate"),
    pytest.param(stranger, "node-2", "answered for a", id="for-another"),
    pytest.param(lambda answer, ask: replace(answer, lacks=True), "c", "cannot use the model", id="never-content"),
]


@pytest.mark.parametrize(("bad", "who", "reason"), BAD_ANSWERS)
def test_a_bad_answer_is_quarantined_and_the_round_goes_on(grid, config, manifest, bad, who, reason):
    class Bad(Honest):
        def answer(self, ask):
            answer = super().answer(ask)
            if ask.task != "train":
                return answer
            changed = bad(answer, ask)
            if not isinstance(changed, bytes):
                return changed
            content = answer.pack()
            content["text"]["json"] = changed.decode("latin-1")
            return content

    grid.nodes[2] = Bad(manifest, "c")
    engine = Flower(grid, config)
    state, (summary,) = play(engine, config)
    assert list(summary.quarantined) == [who]
    assert reason in summary.quarantined[who]
    counted = [client for client in "abc" if client != who or reason == "second reply"]
    assert torch.equal(state.params_P, moved(engine, *counted))


def test_an_app_that_breaks_costs_its_client_the_round(grid, config, manifest):
    class Broken(Honest):
        def send(self, answer, message):
            if self.asks[-1].task == "describe":
                return super().send(answer, message)
            return Message(Error(2, "\x1b[2Jit broke\n" + "x" * 9999), reply_to=message)

    grid.nodes[2] = Broken(manifest, "c")
    state, (summary,) = play(engine := Flower(grid, config), config)
    assert "it broke" in summary.quarantined["c"]
    assert summary.quarantined["c"].isprintable()
    assert torch.equal(state.params_P, moved(engine, "a", "b"))


def test_a_reply_of_the_round_before_is_no_reply(grid, config, manifest):
    class Repeats(Honest):
        def result(self, client, ask):
            result = super().result(client, ask)
            return self.replies.get(1, result) if ask.task == "train" else result

    grid.nodes[2] = Repeats(manifest, "c")
    _, summaries = play(Flower(grid, config), config, rounds=2)
    assert [list(summary.quarantined) for summary in summaries] == [[], ["c"]]
    assert "round" in summaries[1].quarantined["c"]


def test_a_round_closes_at_the_deadline_and_a_late_reply_is_refused(grid, config, manifest):
    config = replace(config, flower=HASTE)
    grid.nodes[2] = Silent(manifest, "c")
    engine = Flower(grid, config)
    state, (first,) = play(engine, config)
    assert first.quarantined == {"c": "no answer within 0.3 s"}
    assert torch.equal(state.params_P, moved(engine, "a", "b"))
    ((number, reply),) = grid.nodes[2].late
    grid.replies[number] = reply
    state, (second,) = play(engine, config, state=state)
    assert "round 1, expected 'c', round 2" in second.quarantined["c"]
    assert second.weights.keys() == {"a", "b", "c"}  # its reply to this round counts all the same


def test_who_owes_one_is_asked_again_where_too_few_have_answered(grid, config, manifest):
    config = replace(config, flower=replace(HASTE, min_replies=2))
    grid.nodes[1], grid.nodes[2] = Silent(manifest, "b"), Silent(manifest, "c")
    engine = Flower(grid, config)
    state, (summary,) = play(engine, config)
    assert not summary.quarantined
    assert torch.equal(state.params_P, moved(engine, "a", "b", "c"))
    assert [ask.task for ask in grid.nodes[0].asks] == ["describe", "train"]
    assert [ask.task for ask in grid.nodes[1].asks] == ["describe", "train", "train"]


def test_a_node_may_vanish_and_return_under_another_number(grid, config, manifest):
    engine = Flower(grid, config)
    state, _ = play(engine, config)
    del grid.nodes[2]
    state, (without,) = play(engine, config, state=state)
    assert without.quarantined == {"c": "its node is away"}
    grid.nodes[7] = Honest(manifest, "c")
    state, _ = play(engine, config, state=state)  # it says who it is while the others train
    state, (last,) = play(engine, config, state=state)
    assert not last.quarantined
    assert last.downlink_bytes["c"] == 4 * manifest.size > last.downlink_bytes["a"]


def test_a_node_that_is_slow_to_say_who_it_is_takes_part_once_it_has(grid, config, manifest):
    engine = Flower(grid, config)
    state, _ = play(engine, config)
    del grid.nodes[2]
    grid.nodes[7] = Silent(manifest, "c", task="describe")
    state, summaries = play(engine, config, rounds=2, state=state)
    assert [summary.quarantined for summary in summaries] == 2 * [{"c": "its node is away"}]
    ((number, reply),) = grid.nodes[7].late
    grid.replies[number] = reply
    state, _ = play(engine, config, state=state)
    _, (last,) = play(engine, config, state=state)
    assert not last.quarantined


def test_a_node_that_lost_its_disk_gets_the_whole_model_in_the_same_round(grid, config, manifest):
    class Forgetful(Honest):
        def answer(self, ask):
            if ask.task == "train" and ask.shipment.kind != "whole":
                return Answer(lacks=True)
            return super().answer(ask)

    grid.nodes[2] = Forgetful(manifest, "c")
    _, (first, second) = play(Flower(grid, config), config, rounds=2)
    assert not first.quarantined
    assert not second.quarantined
    assert [ask.shipment.kind for ask in grid.nodes[2].asks[1:]] == ["whole", "update", "whole"]
    assert second.downlink_bytes["c"] == second.downlink_bytes["a"] + 4 * manifest.size


def test_a_model_that_was_sent_for_an_evaluation_is_not_sent_again(grid, config):
    engine = Flower(grid, config)
    state = ServerState.initial(engine.initial_parameters())
    assert [evaluation.client for evaluation in engine.evaluate(state)] == ["a", "b", "c"]
    _, (summary,) = play(engine, config, state=state)
    assert [ask.shipment.kind for ask in grid.nodes[0].asks[1:]] == ["whole", "held"]
    assert summary.downlink_bytes == dict.fromkeys("abc", 4 * engine.manifest.size)


def test_a_name_belongs_to_its_node(grid, config, manifest, caplog):
    grid.names = {0: "a", 3: "d"}
    grid.nodes[3], grid.nodes[4] = Honest(manifest, "a"), Honest(manifest, "b")
    engine = Flower(grid, config)
    play(engine, config)
    assert engine.clients == ["a", "b", "c"]
    assert len(grid.nodes[0].asks) == len(grid.nodes[1].asks) == 2
    assert len(grid.nodes[3].asks) == len(grid.nodes[4].asks) == 1
    assert "node 3: it says that it has client a, but it was registered as d" in caplog.text
    assert "node 4: it says that it has client b, but node 1 has it" in caplog.text


def test_a_node_may_have_several_clients(grid, config, manifest):
    grid.nodes = {0: Honest(manifest, "a", "b"), 1: Honest(manifest, "c")}
    engine = Flower(grid, config)
    state, (summary,) = play(engine, config)
    assert torch.equal(state.params_P, moved(engine, "a", "b", "c"))
    assert summary.downlink_bytes.keys() == {"a", "c"}


def test_a_run_waits_for_the_clients_that_it_knows_but_not_for_ever(grid, config):
    engine = Flower(grid, replace(config, flower=HASTE), known=["b", "long gone"])
    assert engine.clients == ["a", "b", "c", "long gone"]
    _, (summary,) = play(engine, config)
    assert summary.quarantined == {"long gone": "its node is away"}


def test_no_usable_reply_at_all_ends_the_run_and_says_why(grid, config, manifest):
    grid.nodes = {n: Silent(manifest, name, times=99) for n, name in enumerate("abc")}
    config = replace(config, flower=replace(HASTE, min_replies=0))
    with pytest.raises(RunError, match=r"round 1: no client gave a usable reply \(a: no answer within"):
        play(Flower(grid, config), config)


class Light(Honest):
    """One that holds nothing, and shares its delta with all others of its kind."""

    def answer(self, ask):
        if ask.task == "describe":
            return super().answer(ask)
        (client,) = ask.clients
        header = Header(client, ask.round, self.manifest.hash, ask.shipment.model)
        return Answer((Reply(client, report(client, ask.round), pack(shared(self.manifest.size), header)),))


@lru_cache
def shared(size):
    return encode(delta("all", 0, size))


def test_a_thousand_nodes_do_not_make_the_server_grow(config, manifest):
    grid = LocalGrid()
    grid.nodes = {number: Light(manifest, f"client-{number:04d}") for number in range(1000)}
    rule = AggregationConfig("fgrpo")  # agreement keeps each client's last delta, in the run's folder, and here is none
    many = replace(config, aggregation=rule, participation=ParticipationConfig(clients_per_round=64))
    engine, state, resident = Flower(grid, many), None, []
    assert len(engine.clients) == 1000
    for _ in range(5):
        state, (summary,) = play(engine, many, state=state)
        assert len(summary.weights) == 64
        grid.sent.clear()
        grid.answered.clear()
        for node in grid.nodes.values():
            node.asks.clear()
        gc.collect()
        resident.append(4096 * int(Path("/proc/self/statm").read_text().split()[1]))
    replies = sum(summary.uplink_bytes.values())
    assert resident[-1] - resident[1] < replies / 2  # three rounds later; the replies of one are 24 MB
