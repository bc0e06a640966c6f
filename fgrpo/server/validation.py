"""Every reply is judged on its own: a bad one is quarantined with a reason, never the round."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import TypeGuard

from fgrpo.errors import PayloadError
from fgrpo.records import Accepted, Failure, Reply, Report, Score
from fgrpo.server.limits import Limits
from fgrpo.wire.parameters import Manifest
from fgrpo.wire.payload import expect, unpack


def sort_replies(
    replies: Iterable[Reply | Failure],
    clients: Iterable[str],
    round_number: int,
    manifest: Manifest,
    base: str,
    limits: Limits | None = None,
    heldout: bool = False,
) -> tuple[list[Accepted], dict[str, str]]:
    """Split replies into the accepted ones, ordered by client name, and the reasons of the others.

    The order does not depend on that of arrival, so neither does the aggregate, to the bit.

    Args:
        clients: the names of those who were asked.
        round_number: the round that they were asked for.
        manifest: of the global model.
        base: fingerprint of the global parameters that they were sent.
        limits: what no honest reply exceeds; None believes any number.
        heldout: whether reports must have a held-out score.
    """
    asked, accepted, quarantined = set(clients), {}, {}
    for reply in replies:
        if isinstance(reply, Failure):
            quarantined[reply.client] = reply.reason
            continue
        try:
            if reply.client not in asked:
                raise PayloadError("nobody asked this client")
            if reply.client in accepted:
                raise PayloadError("a second reply to the same round; the first one counts")
            _check_report(reply.report, reply.client, round_number)
            if heldout and reply.report.heldout is None:
                raise PayloadError("report: no heldout, expected the score that aggregation.gain heldout asks for")
            if limits is not None:
                limits.check_report(reply.report)
            header, delta = unpack(reply.payload)
            expect(
                header,
                delta,
                client=reply.client,
                round_number=round_number,
                manifest=manifest.hash,
                size=manifest.size,
                base=base,
            )
            if limits is not None:
                limits.check_delta(delta)
            accepted[reply.client] = Accepted(reply.report, delta, reply.payload)
        except PayloadError as error:
            quarantined[reply.client] = str(error)
    return [accepted[client] for client in sorted(accepted)], quarantined


def _check_report(report: Report, client: str, round_number: int) -> None:
    if (report.client, report.round) != (client, round_number):
        raise PayloadError(
            f"report: of client {_shown(report.client)}, round {_shown(report.round)}, "
            f"expected {_shown(client)}, round {round_number}"
        )
    # A report from another machine may hold anything: what the aggregation rules and the logs compute with must be
    # numbers, and numbers that a float can hold.
    counts = [("sequences", 1), *((n, 0) for n in ("tokens", "informative", "groups", "unrewarded", "reward_failures"))]
    for name, least in [*counts, ("rows", 1)] if report.rows is not None else counts:
        _check_count(name, getattr(report, name), least)
    if report.informative > report.sequences:
        raise PayloadError(f"report: {report.informative} informative sequences of {report.sequences}")
    for name in ("reward_mean", "reward_std", "completion_length", "degenerate"):
        _check_finite(name, getattr(report, name))
    if report.heldout is not None:
        _check_score("heldout", report.heldout)
    if not isinstance(report.reward_failure, str) or len(report.reward_failure) > 1000:
        raise PayloadError(f"report: reward_failure is {_shown(report.reward_failure)}, expected a line of text")
    if report.reward_std < 0:
        raise PayloadError(f"report: reward_std is {report.reward_std}, expected none below 0")
    for name in ("metrics", "seconds"):
        entries = getattr(report, name)
        if not isinstance(entries, Mapping) or not all(isinstance(key, str) for key in entries):
            raise PayloadError(f"report: {name} is {_shown(entries)}, expected numbers by name")
        for key, value in entries.items():
            if not _is_number(value):
                raise PayloadError(f"report: {name}[{_shown(key)}] is {_shown(value)}, expected a number")


def _check_score(name: str, score: object) -> None:
    if not isinstance(score, Score):
        raise PayloadError(f"report: {name} is {_shown(score)}, expected mean, std and count")
    _check_count(f"{name}.count", score.count, 1)
    _check_finite(f"{name}.mean", score.mean)
    _check_finite(f"{name}.std", score.std)
    if score.std < 0:
        raise PayloadError(f"report: {name}.std is {score.std}, expected none below 0")


def _check_count(name: str, count: object, least: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not least <= count < 2**53:
        expected = "at least one" if least else "none below 0"
        raise PayloadError(f"report: {_shown(count)} {name}, expected {expected}, a whole number below 2**53")


def _check_finite(name: str, value: object) -> None:
    if not _is_number(value) or not math.isfinite(value):
        raise PayloadError(f"report: {name} is {_shown(value)}, expected a finite number")


def _is_number(value: object) -> TypeGuard[float]:
    """A float, or an int that is no larger than one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**53
    return isinstance(value, float)


def _shown(value: object) -> str:
    """A value for a message, shortened: a client chose it."""
    return reprlib.repr(value)
