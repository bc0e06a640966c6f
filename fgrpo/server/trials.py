"""What the server's own trials of replies say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fgrpo.errors import RunError
from fgrpo.records import GLOBAL, Accepted, Failure, Trial
from fgrpo.server.aggregation.gain import Trials


def sort_trials(
    results: Iterable[Trial | Failure], accepted: Sequence[Accepted]
) -> tuple[Trials, list[Accepted], dict[str, str]]:
    """Return the scores, the replies that have one, and the reasons of the others.

    A delta with which the model cannot even be tried is of no use, and quarantined like any other bad reply.

    Raises:
        RunError: the global model itself cannot be tried.
    """
    scores, failed = {}, {}
    for result in results:
        if isinstance(result, Trial):
            scores[result.client] = result.score
        elif result.client == GLOBAL:
            raise RunError(f"aggregation.gain: the public prompts cannot be scored: {result.reason}")
        else:
            failed[result.client] = f"the model with its delta cannot be scored: {result.reason}"
    before = scores.pop(GLOBAL)
    return Trials(before, scores), [reply for reply in accepted if reply.report.client in scores], failed
