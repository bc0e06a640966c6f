"""A worker process: it loads the model once, then plays the clients that it is handed, until nobody hands it any."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fgrpo.config import Config
from fgrpo.engines.shared import SharedMemory, frozen_bytes
from fgrpo.errors import FgrpoError
from fgrpo.processes import serve_only
from fgrpo.quiet import be_quiet
from fgrpo.residuals import Residuals
from fgrpo.wire.parameters import Manifest, flatten

if TYPE_CHECKING:  # a parent that only hands out work never loads the libraries that do it
    from fgrpo.engines.workplace import Workplace


@dataclass(frozen=True)
class Train:
    """A client's turn in round `number`."""

    client: str
    number: int
    residuals: Residuals


@dataclass(frozen=True)
class Evaluate:
    """The global model after round `number` on a client's held-out prompts."""

    client: str
    number: int


@dataclass(frozen=True)
class TryOut:
    """The global model with a client's delta on top, see `Engine.try_out`."""

    client: str
    payload: bytes | None


@dataclass(frozen=True)
class Load:
    """Put the parameters as the model was loaded into the shared vector."""


@dataclass(frozen=True)
class Save:
    """Write the global model."""

    folder: Path


@dataclass(frozen=True)
class Describe:
    """Say what each client has to learn from."""


Job = Train | Evaluate | TryOut | Load | Save | Describe


@dataclass(frozen=True)
class Opened:
    """A worker's first message: the model is loaded.

    Attributes:
        clients, evaluated: names of the clients that take part, and of those among them that hold prompts out.
        manifest: the trained parameters.
        frozen: bytes of the others that workers can share.
    """

    clients: tuple[str, ...]
    evaluated: tuple[str, ...]
    manifest: Manifest
    frozen: int


@dataclass(frozen=True)
class Stage:
    """A stage of the client at work begins."""

    stage: str


@dataclass(frozen=True)
class Done:
    """The job is done, and this is what it gave."""

    result: Any


@dataclass(frozen=True)
class Refused:
    """The job, or loading the model, cannot be done. Nobody's fault but the configuration's, or ours.

    Attributes:
        error: to be raised where the engine was asked; None for an error that is a fault of the program.
    """

    error: FgrpoError | None
    traceback: str


def serve(connection: Connection, config: Config, threads: int) -> None:
    """Be a worker: answer every job that comes through the connection with stages, then `Done` or `Refused`."""
    serve_only()
    be_quiet()
    try:
        workplace = _open(config, threads)
        model = workplace.policy.model
        owners, frozen = workplace.owners, frozen_bytes(model)
        opened = Opened(tuple(owners.taking_part), tuple(owners.evaluated), Manifest.of(model), frozen)
        connection.send(opened)
        params_P = SharedMemory.receive(connection, 4 * opened.manifest.size).bytes.view(torch.float32)
        if frozen:
            SharedMemory.receive(connection, frozen).hold_frozen(model)
        while True:
            connection.send(Done(_play(connection.recv(), workplace, params_P, connection)))
    except EOFError:  # the parent needs no more of this worker
        return
    except FgrpoError as error:
        connection.send(Refused(error, traceback.format_exc()))
    except Exception:
        connection.send(Refused(None, traceback.format_exc()))


def _open(config: Config, threads: int) -> Workplace:
    from fgrpo.engines.workplace import Workplace

    torch.set_num_threads(threads)
    return Workplace.open(config)


def _play(job: Job, workplace: Workplace, params_P: Tensor, connection: Connection) -> Any:
    match job:
        case Train():
            return workplace.train(
                job.client, params_P, job.residuals, job.number, lambda stage: connection.send(Stage(stage))
            )
        case Evaluate():
            return workplace.evaluate(job.client, params_P, job.number)
        case TryOut():
            return workplace.try_out(params_P, job.client, job.payload)
        case Load():
            params_P.copy_(flatten(workplace.policy.model))
        case Save():
            workplace.save(params_P, job.folder)
        case Describe():
            return workplace.owners.describe()
