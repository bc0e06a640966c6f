"""One round, top to bottom; then many of them."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from fgrpo.config import Config
from fgrpo.engines.base import Engine, Observer
from fgrpo.errors import RunError
from fgrpo.participation import participants
from fgrpo.records import GLOBAL, Accepted, Evaluation, Failure, Record, RoundSummary, ServerState
from fgrpo.run_folder import RunFolder
from fgrpo.server.aggregation import make_rule
from fgrpo.server.aggregation.gain import Trials
from fgrpo.server.combine import combine
from fgrpo.server.geometry import Geometry
from fgrpo.server.history import compares_deltas, learn
from fgrpo.server.limits import Limits
from fgrpo.server.privacy import epsilon, spent_in_round
from fgrpo.server.step import server_step
from fgrpo.server.step_size import make_step_size
from fgrpo.server.trials import sort_trials
from fgrpo.server.validation import sort_replies
from fgrpo.stopwatch import Stopwatch
from fgrpo.wire.parameters import fingerprint

_log = logging.getLogger(__name__)


def play_round(
    state: ServerState, engine: Engine, config: Config, observer: Observer
) -> tuple[ServerState, RoundSummary, list[Accepted]]:
    """Send the global model to the round's clients, weigh what comes back, and step along its mean."""
    number, stopwatch = state.round + 1, Stopwatch(lambda stage: observer.stage("server", stage))
    asked = participants(engine.clients, config, number)
    with stopwatch("clients"):
        replies, residuals = engine.train(state, asked, observer)
        _log_failures(replies, number)
    with stopwatch("validate"):
        limits = None if engine.downlink_bytes is None else Limits.of(config, engine.manifest.size)
        base = fingerprint(state.params_P)
        heldout = config.aggregation.gain == "heldout"
        accepted, quarantined = sort_replies(replies, asked, number, engine.manifest, base, limits, heldout)
    trials = None
    if config.aggregation.gain == "server" and accepted:
        with stopwatch("trial"):
            trials, accepted, failed = _tried(accepted, engine, state)
            quarantined |= failed
    if not accepted:
        return _lost_round(state, len(asked) < len(engine.clients), quarantined, engine, config, stopwatch)
    with stopwatch("aggregate"):
        reports = [reply.report for reply in accepted]
        clients = [report.client for report in reports]
        deltas = dict(zip(clients, (reply.delta for reply in accepted), strict=True))
        geometry = Geometry(deltas, state.last_deltas)
        rule = make_rule(config.aggregation, trials)
        weights = dict(zip(clients, rule(reports, state.history, geometry), strict=True))
        combined = combine(deltas, weights, config.aggregation)
        step_size = make_step_size(config)(geometry, combined.weights, state.step)
        learned = learn(state, reports, combined.weights, geometry, config, trials)
    with stopwatch("server_step"):
        params_P, optimizer = server_step(state.params_P, combined.delta_P, state.optimizer, config.server, step_size)

    spent, privacy = state.spent, config.privacy
    if privacy is not None:
        spent += spent_in_round(list(combined.weights.values()), config.aggregation, privacy)
    new_state = ServerState(
        round=number,
        params_P=params_P,
        optimizer=optimizer,
        history=learned.clients,
        residuals=state.residuals.updated({c: residuals[c] for c in clients if c in residuals}),
        step=learned.step,
        last_deltas=state.last_deltas.updated(deltas) if compares_deltas(config) else state.last_deltas,
        spent=spent,
    )
    summary = RoundSummary(
        round=number,
        weights=combined.weights,
        gains=learned.gains,
        quarantined=quarantined,
        uplink_bytes={reply.report.client: len(reply.payload) for reply in accepted},
        dense_bytes=4 * engine.manifest.size,
        update_norm=torch.linalg.vector_norm(params_P - state.params_P).item(),
        seconds=dict(stopwatch.seconds),
        robust=config.aggregation.robust,
        delta_norms=combined.norms,
        step_size=step_size,
        agreement=learned.agreement,
        ended=_now(),
        downlink_bytes=engine.downlink_bytes or {},
        epsilon=None if privacy is None else epsilon(spent, privacy.delta),
    )
    return new_state, summary, accepted


def _tried(
    accepted: Sequence[Accepted], engine: Engine, state: ServerState
) -> tuple[Trials, list[Accepted], dict[str, str]]:
    """Have every reply's delta tried out on the server's public prompts, see `sort_trials`."""
    payloads: dict[str, bytes | None] = {reply.report.client: reply.payload for reply in accepted}
    results = list(engine.try_out(state, {GLOBAL: None, **payloads}))
    _log_failures(results, state.round + 1)
    return sort_trials(results, accepted)


def _lost_round(
    state: ServerState,
    others_left: bool,
    quarantined: Mapping[str, str],
    engine: Engine,
    config: Config,
    stopwatch: Stopwatch,
) -> tuple[ServerState, RoundSummary, list[Accepted]]:
    """Leave the model as it is if the next round may ask others; else there is no use in going on."""
    number = state.round + 1
    if not others_left:
        reasons = "; ".join(f"{client}: {reason}" for client, reason in quarantined.items())
        raise RunError(f"round {number}: no client gave a usable reply ({reasons})")
    size, seconds, robust = 4 * engine.manifest.size, dict(stopwatch.seconds), config.aggregation.robust
    summary = RoundSummary(number, {}, {}, quarantined, {}, size, 0.0, seconds, robust, ended=_now())
    return replace(state, round=number), replace(summary, downlink_bytes=engine.downlink_bytes or {}), []


def play(state: ServerState, engine: Engine, config: Config, folder: RunFolder, observer: Observer) -> ServerState:
    """Play rounds until `config.rounds` are complete; after each, the folder holds all that the next one needs."""
    if config.privacy is not None:
        epsilon(1.0, config.privacy.delta)  # rather now than after a round, if it cannot be told
    if not folder.rounds():
        data = engine.describe()
        for client in data:
            observer.record(client)
        state = _close_round(state, [], [], engine, config, folder, observer, told=data)
    while state.round < config.rounds:
        state, summary, accepted = play_round(state, engine, config, observer)
        state = _close_round(
            state, [*(reply.report for reply in accepted), summary], accepted, engine, config, folder, observer
        )
    return state


def _close_round(
    state: ServerState,
    records: Sequence[Record],
    accepted: Sequence[Accepted],
    engine: Engine,
    config: Config,
    folder: RunFolder,
    observer: Observer,
    told: Sequence[Record] = (),
) -> ServerState:
    """Evaluate if it is due, put the round on disk, and tell the observer all but what it has been `told`.

    Returns:
        The state to go on from.
    """
    every = config.evaluation.every
    if state.round in (0, config.rounds) or (every and state.round % every == 0):
        observer.stage("server", "evaluate")
        results = list(engine.evaluate(state))
        # One that cannot be evaluated cannot train either: its quarantine tells the reason, the log the rest.
        _log_failures(results, state.round)
        records = [*records, *(result for result in results if isinstance(result, Evaluation))]
    observer.stage("server", "save")
    state = folder.commit(state, [*told, *records], {reply.report.client: reply.payload for reply in accepted})
    for record in records:
        observer.record(record)
    return state


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _log_failures(results: Iterable[object], number: int) -> None:
    """Note what a quarantine's one line does not say."""
    for result in results:
        if isinstance(result, Failure):
            _log.error("round %d, client %s: %s\n%s", number, result.client, result.reason, result.traceback)
