"""Clients on nodes: a late reply or none harms only its own client, and the round goes on."""

from dataclasses import replace

import pytest
import torch
from honest import Behind, Honest, Silent, Slow
from played import moved, play

from fgrpo.config import AggregationConfig, FlowerConfig
from fgrpo.engines.flower import engine as flower
from fgrpo.engines.flower.engine import Flower
from fgrpo.engines.flower.messages import Answer
from fgrpo.engines.flower.roll import Roll
from fgrpo.errors import RunError
from fgrpo.records import ServerState

HASTE = FlowerConfig(min_clients=3, deadline=0.3)


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
    assert [ask.task for ask in grid.nodes[1].asks] == ["describe", "train", "describe", "train"]


def test_a_node_that_holds_its_answers_back_is_asked_for_them(grid, config, manifest, monkeypatch):
    monkeypatch.setattr(flower, "_SILENCE", 0.2)
    grid.nodes[2] = Behind(manifest, grid, "c")
    engine = Flower(grid, replace(config, flower=replace(HASTE, deadline=30.0)), known=["a", "b", "c"])
    state, summaries = play(engine, config, rounds=2)
    assert [summary.weights.keys() for summary in summaries] == 2 * [{"a", "b", "c"}]
    assert [evaluation.client for evaluation in engine.evaluate(state)] == ["a", "b", "c"]
    assert [ask.task for ask in grid.nodes[0].asks] == ["describe", "train", "train", "evaluate"]
    asked = [ask.task for ask in grid.nodes[2].asks]
    assert asked == ["describe", "describe", "train", "describe", "train", "describe", "evaluate", "describe"]


def test_a_node_that_holds_its_answers_back_is_asked_for_them_before_the_deadline(grid, config, manifest):
    grid.nodes[2] = Behind(manifest, grid, "c")
    hurried = replace(config, flower=replace(HASTE, deadline=4.0))
    _, summaries = play(Flower(grid, hurried, known=["a", "b", "c"]), hurried, rounds=2)
    assert not any(summary.quarantined for summary in summaries)


def test_a_node_that_takes_its_time_is_asked_who_it_is_but_once_a_turn(grid, config, manifest, monkeypatch):
    monkeypatch.setattr(flower, "_SILENCE", 0.1)
    grid.nodes[2] = Slow(manifest, grid, 1.0, "c")
    _, summaries = play(Flower(grid, config), config, rounds=3)
    assert not any(summary.quarantined for summary in summaries)
    assert [ask.task for ask in grid.nodes[2].asks] == ["describe", *3 * ["train", "describe"]]


def test_what_a_node_holds_is_what_it_was_last_sent_whenever_it_says_who_it_is():
    roll = Roll(patience=60.0)
    roll.enter(0, Answer(held="first"))
    roll.held[0] = "second"
    roll.enter(0, Answer(held="first"))
    assert roll.held == {0: "second"}


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
