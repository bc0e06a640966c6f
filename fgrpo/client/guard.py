"""One client's trouble is nobody else's."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

import torch

from fgrpo.errors import FgrpoError
from fgrpo.records import Failure

Done = TypeVar("Done")


def guarded(client: str, play: Callable[[], Done]) -> Done | Failure:
    """Return what a client's part gives. Whatever ends it, be it `exit()` in a reward, ends nobody else's."""
    try:
        return play()
    except KeyboardInterrupt:
        raise
    except FgrpoError as error:
        return Failure(client, str(error), traceback.format_exc(), type(error).__name__)
    except BaseException as error:
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        (*_, last) = traceback.format_exception_only(error)
        reason = f"{last.splitlines()[0]}; its traceback is in the run's log"
        return Failure(client, reason, traceback.format_exc(), type(error).__name__)
