"""The Hugging Face hub: whether it answers, known in seconds where its libraries would try again for a minute."""

from __future__ import annotations

import os
import re
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fgrpo.checks import tasks_by_key
from fgrpo.config import PACKAGED_MODELS, Config
from fgrpo.errors import ConfigError
from fgrpo.paths import leads_somewhere

_PATIENCE = 3.0  # seconds
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_FILES = (".json", ".jsonl", ".csv", ".parquet")


@contextmanager
def hub_or_disk(config: Config) -> Iterator[None]:
    """Within it, what a configuration names of the hub is taken from this disk if the hub does not answer.

    Nothing is asked where everything is on the disk, or where HF_HUB_OFFLINE says what to do.

    Raises:
        ConfigError: a name is a path, and nothing is there; or the hub does not answer, and a model or dataset was
            never fetched.
    """
    check_paths(config)
    needed = _elsewhere(config)
    if not needed or "HF_HUB_OFFLINE" in os.environ or _answers(_endpoint()):
        yield
        return
    for key, name, kind in needed:
        if not _was_fetched(kind, name):
            raise ConfigError(f"{key}: '{name}' is not on this disk, and {_endpoint()} cannot be reached to fetch it")
    with _offline():
        yield


def check_paths(config: Config) -> None:
    """Raise ConfigError for a name of a model or dataset that can only be a path, and leads nowhere."""
    for key, name, _ in _elsewhere(config):
        if name.endswith(_FILES) or not _HUB_ID.fullmatch(name):
            raise ConfigError(
                f"{key}: there is no '{name}', neither from the configuration's folder nor from the working folder"
            )


def _elsewhere(config: Config) -> list[tuple[str, str, str]]:
    """Return (key, name, kind) of each model and dataset that is not on the disk under its name, and has no address."""
    named = [
        (f"{key}: {field}", name, "datasets")
        for key, tasks in tasks_by_key(config)
        for task in tasks
        for field, name in (("dataset", task.dataset), ("test_dataset", task.test_dataset))
        if name is not None
    ]
    if config.model not in PACKAGED_MODELS:
        named.append(("model", config.model, "models"))
    return [
        (key, name, kind)
        for key, name, kind in dict.fromkeys(named)
        if "://" not in name and not leads_somewhere(Path(name))
    ]


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def _answers(address: str) -> bool:
    """Whether a server answers, be it with an error. In a thread: looking up a name knows no time limit."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_PATIENCE).close()
        except (OSError, ValueError) as error:
            # A page that is not there is an answer; so is a certificate that others than the libraries do not know.
            reason = getattr(error, "reason", None)
            if not isinstance(error, urllib.error.HTTPError) and not isinstance(reason, ssl.SSLError):
                return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return answered.is_set()


def _was_fetched(kind: str, name: str) -> bool:
    """Whether the hub's or datasets' cache knows a name. What is missing of it shows when it is loaded."""
    from huggingface_hub import constants

    data = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME) / "datasets"))
    folders = [Path(constants.HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}"]
    if kind == "datasets":
        folders.append(data / name.replace("/", "___"))
    return any(folder.is_dir() for folder in folders)


@contextmanager
def _offline() -> Iterator[None]:
    """Have libraries, and processes that are started, ask no hub: those read it once, when they are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    _tell_loaded(True)
    try:
        yield
    finally:
        del os.environ["HF_HUB_OFFLINE"]
        _tell_loaded(False)


def _tell_loaded(offline: bool) -> None:
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            vars(sys.modules[name])["HF_HUB_OFFLINE"] = offline
