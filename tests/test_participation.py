"""Who takes part in a round follows from the seed and the round."""

from collections import Counter
from dataclasses import replace

import pytest

from fgrpo.config import ClientConfig, Config, EvaluationConfig, ParticipationConfig, PartitionConfig, TaskConfig
from fgrpo.errors import ConfigError
from fgrpo.participation import clients_per_round, evaluated, participants

NAMES = [f"c{k}" for k in range(20)]
CLIENTS = {name: ClientConfig([TaskConfig(reasoning_gym="gcd")]) for name in NAMES}
FIVE = Config(clients=CLIENTS, participation=ParticipationConfig(clients_per_round=5))


def test_everybody_without_it():
    config = Config(clients=CLIENTS)
    assert participants(NAMES, config, 1) == evaluated(NAMES, config) == NAMES


def test_a_round_has_its_own_sample_in_the_clients_order():
    rounds = [participants(NAMES, FIVE, number) for number in range(1, 401)]
    assert rounds == [participants(NAMES, FIVE, number) for number in range(1, 401)]
    assert all(len(set(chosen)) == 5 and chosen == sorted(chosen, key=NAMES.index) for chosen in rounds)
    counts = Counter(client for chosen in rounds for client in chosen)
    assert min(counts[name] for name in NAMES) > 70, "a hundred each, but for chance"
    assert max(counts.values()) < 130


def test_the_sample_has_a_seed_of_its_own():
    def chosen(seed, own):
        config = replace(FIVE, seed=seed, participation=ParticipationConfig(clients_per_round=5, seed=own))
        return [participants(NAMES, config, number) for number in range(1, 9)]

    assert chosen(0, 7) == chosen(1, 7)
    assert chosen(0, None) == chosen(1, 0)
    assert chosen(0, None) != chosen(1, None)


@pytest.mark.parametrize(("fraction", "size"), [(0.001, 1), (0.1, 2), (0.26, 5), (1.0, 20)])
def test_a_fraction_is_rounded_and_never_nobody(fraction, size):
    config = replace(FIVE, participation=ParticipationConfig(fraction=fraction))
    assert clients_per_round(config) == size
    assert len(participants(NAMES, config, 1)) == size


@pytest.mark.parametrize(
    ("participation", "message"),
    [
        (ParticipationConfig(), "either fraction or clients_per_round"),
        (ParticipationConfig(fraction=0.5, clients_per_round=2), "either fraction or clients_per_round"),
        (ParticipationConfig(clients_per_round=21), "clients_per_round: got 21 of 20 clients"),
    ],
    ids=["neither", "both", "more-than-there-are"],
)
def test_what_cannot_be_is_one_line(participation, message):
    with pytest.raises(ConfigError, match=message):
        clients_per_round(replace(FIVE, participation=participation))


def test_more_clients_than_there_are_is_found_when_the_data_say_how_many():
    partition = PartitionConfig(TaskConfig(dataset="x.csv"), scheme="column", column="topic")
    config = Config(partition=partition, participation=ParticipationConfig(clients_per_round=21))
    assert clients_per_round(config) == 21
    with pytest.raises(ConfigError, match="got 21 of 20 clients"):
        participants(NAMES, config, 1)


def test_the_evaluated_sample_stays():
    config = replace(FIVE, evaluation=EvaluationConfig(clients=3))
    assert len(evaluated(NAMES, config)) == 3
    assert evaluated(NAMES, replace(config, evaluation=EvaluationConfig(clients=50))) == NAMES
