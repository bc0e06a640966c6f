"""Every reply is judged alone: a bad one harms only its own client, and the round goes on."""

import re
from dataclasses import replace

import pytest
import torch
from flwr.app import Error, Message, RecordDict
from honest import Honest, delta, payload, report
from played import moved, play

from fgrpo.engines.flower.engine import Flower
from fgrpo.records import Evaluation, Failure, Reply
from fgrpo.wire.payload import Header, pack
from fgrpo_kernels.codec import Encoded


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
