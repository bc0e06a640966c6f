"""Players of cells without a model, for tests; in a module of their own, as they go to other processes."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from fgrpo.errors import RunError
from fgrpo.study.result import Result


def made_up(cell):
    """Accuracy 50% at the start, 10 points more each round and best at `server.lr` 2; seeds differ by a little."""
    step = 0.1 - 0.02 * abs((cell.config.server.lr or 1) - 2)
    rounds = range(cell.config.rounds + 1)
    return {client: {n: 0.3 + 0.01 * cell.seed + step * n for n in rounds} for client in cell.config.clients}


@dataclass(frozen=True)
class Player:
    """Writes made-up results, and a line per played cell; some arms have trouble."""

    root: Path

    def __call__(self, cell, announce):
        with (self.root / "played.txt").open("a") as file:
            file.write(f"{cell.name}\n")
        if cell.arm == "failing" and not cell.tuning:
            raise RunError("no luck")
        if cell.arm == "broken":
            raise ZeroDivisionError("by zero")
        if cell.arm == "dying":
            os.kill(os.getpid(), signal.SIGKILL)
        if cell.arm == "sleeping":
            time.sleep(600)
        announce(cell.work)
        folder = self.root / cell.folder
        folder.mkdir(parents=True)
        Result(made_up(cell), {}, 0, 1.0).write(folder)
