"""Centralised training draws what the federation's clients draw together, and nobody's held-out prompts."""

from collections import Counter
from dataclasses import replace

import pytest

from fgrpo.client.owners import Owners
from fgrpo.config import AggregationConfig, ParticipationConfig
from fgrpo.engines.workplace import Workplace
from fgrpo.federation import play_round
from fgrpo.records import Evaluation, ServerState
from fgrpo.study.baselines import Pooled, by_itself, pooled_client


class Nobody:
    def stage(self, who, stage):
        pass


def test_the_pooled_client_draws_from_all_clients_as_often(small_config):
    sums = small_config.clients["sums"].tasks
    clients = {**small_config.clients, "mixed": replace(small_config.clients["sums"], tasks=[*sums, *sums])}
    owners = Owners(replace(small_config, clients=clients))
    member = pooled_client(list(owners.values()), small_config)
    questions = member.draw(0, 3000)
    drawn = Counter(member.curricula.index(question.curriculum) for question in questions)
    assert [drawn[at] / 3000 for at in range(4)] == pytest.approx([1 / 3, 1 / 3, 1 / 6, 1 / 6], abs=0.03)
    held_out = {question.example.prompt for owner in owners.values() for question in owner.held_out()}
    assert not held_out & {question.example.prompt for question in questions}


def test_nothing_is_tried_out_where_one_client_has_all_the_weight(small_config):
    tasks = small_config.clients["sums"].tasks
    rule = AggregationConfig(gain="server", gain_prompts=2, gain_tasks=tasks)
    config = replace(small_config, aggregation=rule, train=replace(small_config.train, local_steps=1))
    pooled = Pooled(Workplace.open(config))
    state = ServerState.initial(pooled.initial_parameters())
    _, summary, _ = play_round(state, pooled, by_itself(config), Nobody())
    assert "trial" not in summary.seconds
    assert summary.weights == {"pooled": 1.0}


@pytest.mark.parametrize("asked", [1, 2])
def test_a_centralised_round_has_as_many_samples_and_evaluates_every_client(small_config, asked):
    config = replace(small_config, participation=ParticipationConfig(clients_per_round=asked))
    pooled = Pooled(Workplace.open(config))
    state = ServerState.initial(pooled.initial_parameters())
    ((reply,), kept) = pooled.train(state, pooled.clients, Nobody())
    assert reply.report.sequences == asked * 2 * 4 * 4, "clients x steps x prompts x completions"
    assert kept == {}
    evaluations = list(pooled.evaluate(state))
    assert all(isinstance(evaluation, Evaluation) for evaluation in evaluations)
    assert [(evaluation.client, evaluation.prompts) for evaluation in evaluations] == [("sums", 8), ("gcd", 8)]
