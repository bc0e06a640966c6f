"""A node's resident process: it loads libraries and model once, while Flower starts a process for every message.

The first message starts it; it ends with the SuperNode, or after an hour without a message. It listens at a Unix socket
in a folder that nobody else may enter. Nothing here may import PyTorch before there is a resident process.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.app.user_config import UserConfig

from fgrpo.errors import FgrpoError, RunError

_IDLE = 3600  # seconds
_LOOK = 0.5  # seconds between two looks at whether somebody is there


def ask_resident(content: RecordDict, context: Context, app: Path) -> RecordDict:
    """Have the resident process of this node do `fgrpo.engines.flower.node.reply`.

    Raises:
        FgrpoError: as that does; or the process died of it.
    """
    master = os.getppid()  # what Flower starts for a node, and lives as long
    with _connected(_address(master), master) as line:
        try:
            line.send((content, context.run_config, context.node_config, app))
            given = line.recv()
        except (EOFError, OSError):
            raise RunError("node: its resident process died; did memory run out?") from None
    if isinstance(given, RecordDict):
        return given
    if isinstance(given, FgrpoError):
        raise given
    raise RuntimeError(f"in the node's resident process: {given}")


def _address(master: int) -> Path:
    home = Path(tempfile.gettempdir()) / f"fgrpo-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid() or home.stat().st_mode & 0o077:
        raise RunError(f"node: {home} belongs to somebody else or is open to others; remove it")
    return home / f"{master}.sock"


def _connected(address: Path, master: int) -> Connection:
    try:
        return Client(str(address))
    except (FileNotFoundError, ConnectionRefusedError):  # none yet, or what one that was killed has left
        address.unlink(missing_ok=True)
    command = [sys.executable, "-m", __name__, str(address), str(master)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None:
        try:
            return Client(str(address))
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.05)
    raise RunError(f"node: its resident process ended with status {process.returncode} before it could be asked")


class _Life:
    """Ends the process once it is of no use: when the one that it works for is gone, or nobody has come for long."""

    def __init__(self, master: int, address: Path) -> None:
        self._master, self._address = master, address
        self.since: float | None = time.monotonic()  # when the last message was answered; None while one is
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while _is_alive(self._master) and (self.since is None or time.monotonic() - self.since < _IDLE):
            time.sleep(_LOOK)
        self._address.unlink(missing_ok=True)
        os._exit(0)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _serve(address: Path, master: int) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s fgrpo: %(message)s")
    life = _Life(master, address)
    with Listener(str(address)) as listener:
        while True:
            with listener.accept() as line:
                life.since = None
                with suppress(EOFError, OSError):  # whoever asked is gone; the server will ask again
                    line.send(_given(*line.recv()))
                life.since = time.monotonic()


def _given(content: RecordDict, run: UserConfig, own: UserConfig, app: Path) -> RecordDict | FgrpoError | str:
    from fgrpo.engines.flower.node import reply

    try:
        return reply(content, run, own, app)
    except FgrpoError as error:
        return error
    except Exception:
        return traceback.format_exc()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
