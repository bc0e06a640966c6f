"""A node: it owns clients, their data and what they keep, and answers what a server asks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import RecordDict
from flwr.app.user_config import UserConfig
from torch import Tensor

from fgrpo.client.owners import Owners
from fgrpo.client.policy import Policy
from fgrpo.config import Config
from fgrpo.engines.choice import chosen
from fgrpo.engines.flower.messages import Answer, Ask, Result
from fgrpo.engines.flower.setup import node_config
from fgrpo.engines.flower.store import Store
from fgrpo.engines.workplace import Workplace
from fgrpo.errors import PayloadError, TrainingError
from fgrpo.records import Evaluation, Failure, Reply
from fgrpo.settings import to_yaml
from fgrpo.wire.answers import outward
from fgrpo.wire.parameters import fingerprint

_log = logging.getLogger(__name__)
_NODES_KEPT = 8  # in one process, which is a simulation's


def reply(content: RecordDict, run: UserConfig, own: UserConfig, app: Path) -> RecordDict:
    """Answer a message.

    Args:
        run, own: the run's keys and the node's.
        app: the folder of the app that came with the run.

    Raises:
        FgrpoError: the node cannot take part as it is set up.
    """
    return answer(Ask.unpack(content), *node_config(run, own, app)).pack()


def answer(ask: Ask, config: Config, folder: Path) -> Answer:
    """Do what the server asks.

    Args:
        config: the run's, with the node's own clients.
        folder: of the node, see `fgrpo.engines.flower.store`.

    Raises:
        FgrpoError: the node cannot take part as it is set up.
    """
    store, config = Store(folder), _as_a_node(config)
    held_P = store.model()
    if ask.task == "describe":
        described = _owners(_Keyed.of(config)).describe()
        data = tuple(outward(one) for one in described if one.client in config.clients)
        return Answer(data, "" if held_P is None else fingerprint(held_P))
    assert ask.shipment is not None
    try:
        params_P = ask.shipment.open(held_P)
    except PayloadError as error:
        _log.warning("%s", error)
        return Answer(lacks=True)
    if ask.shipment.kind != "held":
        store.hold(params_P)
    return Answer(tuple(_results(ask, params_P, _workplace(config), store)), ask.shipment.model)


def _results(ask: Ask, params_P: Tensor, here: Workplace, store: Store) -> Iterator[Result]:
    for client in ask.clients:
        if client not in here.owners:
            yield Failure(client, "its node has no such client")
        elif ask.task == "evaluate":
            yield _outward(here.evaluate(client, params_P, ask.round))
        else:
            yield _outward(_train(client, ask, params_P, here, store))


def _train(client: str, ask: Ask, params_P: Tensor, here: Workplace, store: Store) -> Reply | Failure:
    heard = ask.heard.get(client, 0)
    store.forget(ask.experiment, client, heard)
    residuals = store.residuals(ask.experiment, {client: heard})
    trained = here.train(client, params_P, residuals, ask.round, lambda stage: _log.info("%s: %s", client, stage))
    return trained if isinstance(trained, Failure) else trained[0]


def _outward(result: Result) -> Result:
    """Return a result without anything that may quote a prompt, an answer or a path; the node's own log has that."""
    if isinstance(result, Failure):
        _log.error("client %s: %s\n%s", result.client, result.reason, result.traceback)
        if result.kind == TrainingError.__name__:  # its text is ours, about numbers
            return Failure(result.client, result.reason)
        return Failure(result.client, f"{result.kind} at its node, whose log says more")
    if isinstance(result, Evaluation):
        return outward(result)
    if isinstance(result, Reply) and result.report.reward_failure:
        _log.error("client %s: %s", result.client, result.report.reward_failure)
        return replace(result, report=replace(result.report, reward_failure="the node's log has the first one"))
    return result


@dataclass(frozen=True)
class _Keyed:
    """A configuration by which something can be cached."""

    key: str
    config: Config = field(compare=False)

    @staticmethod
    def of(config: Config) -> _Keyed:
        return _Keyed(to_yaml(config), config)


def _as_a_node(config: Config) -> Config:
    """Return the configuration as a node reads it: all its clients hold prompts out, and whom to ask is not its say."""
    evaluation, engine = replace(config.evaluation, clients=None), replace(config.engine, workers=0, stacked=False)
    return replace(config, evaluation=evaluation, engine=engine, participation=None)


@lru_cache(maxsize=_NODES_KEPT)
def _owners(keyed: _Keyed) -> Owners:
    return Owners(keyed.config)


@lru_cache(maxsize=1)
def _policy(keyed: _Keyed) -> Policy:
    return Policy.load(keyed.config)


def _workplace(config: Config) -> Workplace:
    """Build it, on a model that all nodes of a simulation share."""
    config = replace(config, engine=chosen(config))
    assert config.engine.threads is not None
    torch.set_num_threads(config.engine.threads)
    return Workplace(config, _owners(_Keyed.of(config)), _policy(_Keyed.of(replace(config, clients={}))))
