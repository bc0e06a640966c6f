"""A run on disk. A round is there whole or not at all, so a killed run goes on from its last whole round.

RUN/config.yaml                 the configuration, with paths from here
RUN/changes.jsonl               what `fgrpo resume` changed of it, and from which round on, if it did
RUN/rounds/0003/records.jsonl   what the round measured
RUN/rounds/0003/state.*         all that the next round needs (kept for the last two rounds)
RUN/rounds/0003/payloads/       the accepted payloads, as received (likewise, and while a rule compares with them)
RUN/residuals/0003/             compression residuals of clients that round 3 heard last (while a kept state needs them)
RUN/metrics.jsonl               the records of all rounds, one after another
RUN/log.txt                     the tracebacks of clients that failed, if any did
RUN/tensorboard/, RUN/model/    curves, and the final model
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fgrpo.errors import RunError
from fgrpo.last_deltas import LastDeltas
from fgrpo.paths import check_free
from fgrpo.records import ClientHistory, Record, ServerState, StepHistory, from_json, to_json
from fgrpo.residuals import Residuals, StoredTensor, sync

_KEPT_ROUNDS = 2


class RunFolder:
    """Reads and writes one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self._changes_file = self.path / "changes.jsonl"
        self._rounds = self.path / "rounds"
        self._residuals = self.path / "residuals"

    @staticmethod
    def create(path: str | Path, config_yaml: str) -> RunFolder:
        """Make a new run folder, in a place that `check_free` passes."""
        check_free(path)
        folder = RunFolder(path)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.config_file.write_text(config_yaml, encoding="utf-8")
            folder._rounds.mkdir()
        except OSError as error:
            raise RunError(f"output_dir: {path} cannot be written: {error.strerror}") from None
        return folder

    @staticmethod
    def open(path: str | Path) -> RunFolder:
        """Open an existing run folder."""
        folder = RunFolder(path)
        for entry in (folder.config_file, folder._rounds):
            if not entry.exists():
                raise RunError(f"{path} is not a run folder: it has no {entry.name}")
        return folder

    def rounds(self) -> list[int]:
        """Return the numbers of the whole rounds on disk; 0 is the state before training."""
        return sorted(int(entry.name) for entry in self._rounds.glob("[0-9]*") if entry.is_dir())

    def initial(self, params_P: Tensor) -> ServerState:
        """Return the state before the first round, whose clients' residuals will lie in this folder."""
        return replace(ServerState.initial(params_P), residuals=Residuals(folder=self._residuals))

    def commit(self, state: ServerState, records: Sequence[Record], payloads: Mapping[str, bytes]) -> ServerState:
        """Write a round beside its place, flush it, and move it there in one step.

        Returns:
            The state to go on from: the same, with every residual and last delta in this folder.
        """
        draft, final = self._rounds / f".{state.round:04d}", self._round(state.round)
        try:
            residuals = state.residuals.within(self._residuals, state.round)
            arrived = [client for client in payloads if client in state.last_deltas]
            deltas = state.last_deltas.updated({client: self._payload(state.round, client) for client in arrived})
            shutil.rmtree(draft, ignore_errors=True)
            (draft / "payloads").mkdir(parents=True)
            _write(draft / "records.jsonl", "".join(json.dumps(to_json(record)) + "\n" for record in records).encode())
            for client, payload in payloads.items():
                _write(draft / "payloads" / self._payload(state.round, client).name, payload)
            described = {
                "round": state.round,
                "history": {client: asdict(past) for client, past in state.history.items()},
                "residuals": residuals.rounds(),
                "step": asdict(state.step),
                "last_deltas": {client: int(file.parent.parent.name) for client, file in deltas.files().items()},
                "spent": state.spent,
            }
            _write(draft / "state.json", json.dumps(described, indent=1).encode())
            save_file(_tensors(state), draft / "state.safetensors")
            sync(draft / "state.safetensors")
            sync(draft)
            os.replace(draft, final)
            sync(self._rounds)
            with self.metrics_file.open("ab") as metrics:
                metrics.write((final / "records.jsonl").read_bytes())
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(
                f"{self.path}: round {state.round} cannot be saved: {reason}; "
                f"the rounds before it are whole, continue with `fgrpo resume {self.path}`"
            ) from None
        self._prune(state.round)
        return replace(state, residuals=residuals, last_deltas=deltas)

    def kept_round(self, number: int | None = None) -> int:
        """Return the number of a round whose state is kept, by default the last; raise RunError where it is not."""
        rounds = self.rounds()
        if not rounds:
            raise RunError(f"{self.path}: it holds no whole round yet; start it again with `fgrpo train`")
        kept = [n for n in rounds if (self._round(n) / "state.json").is_file()]
        if number is not None and number not in kept:
            told = ", ".join(map(str, kept))
            raise RunError(f"{self.path}: the state of round {number} is not kept, only that of {told}")
        return rounds[-1] if number is None else number

    def load(self, round_number: int | None = None) -> ServerState:
        """Read the state after a round, by default the last whole one."""
        number = self.kept_round(round_number)
        folder = self._round(number)
        try:
            described = json.loads((folder / "state.json").read_text())
            with safe_open(folder / "state.safetensors", "pt") as tensors:
                params_P = tensors.get_tensor("params")
                optimizer = {name: tensors.get_tensor(key) for name, key in _under("optimizer.", tensors.keys())}
                within_state = dict(_under("residual.", tensors.keys()))
            residuals = Residuals.found(self._residuals, described.get("residuals", {}))
            deltas = {c: self._payload(at, c) for c, at in described.get("last_deltas", {}).items()}
            for file in (*residuals.files(), *deltas.values()):
                file.stat()
        except (OSError, ValueError, SafetensorError) as error:
            raise RunError(f"{self.path}: the state of round {number} cannot be read: {error}") from None
        # Folders of earlier releases hold the residuals within the state; the next commit gives them files.
        stored = {client: StoredTensor(folder / "state.safetensors", key) for client, key in within_state.items()}
        return ServerState(
            round=described["round"],
            params_P=params_P,
            optimizer=optimizer,
            history={client: ClientHistory(**past) for client, past in described["history"].items()},
            residuals=residuals.updated(stored),
            step=StepHistory(**described.get("step", {})),
            last_deltas=LastDeltas(deltas),
            spent=described.get("spent", 0.0),
        )

    def reopen(self, config_yaml: str, changes: Mapping[str, tuple[Any, Any]]) -> None:
        """Make ready to go on: write the configuration as it is now, and `metrics.jsonl` anew from the whole rounds.

        Args:
            changes: the keys of the configuration that are new, with their values before and after.
        """
        try:
            if changes:
                note = {"from_round": max(self.rounds(), default=0) + 1, "changes": changes}
                with self._changes_file.open("a", encoding="utf-8") as notes:
                    notes.write(json.dumps(note) + "\n")
            draft = self.config_file.with_suffix(".part")
            _write(draft, config_yaml.encode())
            os.replace(draft, self.config_file)
            self._rebuild_metrics()
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}") from None

    def changes(self) -> Iterator[tuple[int, dict[str, tuple[Any, Any]]]]:
        """Read back what was changed: the round from which on, and the keys with their values before and after."""
        if self._changes_file.is_file():
            for line in self._changes_file.read_text(encoding="utf-8").splitlines():
                note = json.loads(line)
                yield note["from_round"], {key: (before, after) for key, (before, after) in note["changes"].items()}

    def _rebuild_metrics(self) -> None:
        self.metrics_file.write_bytes(b"".join((self._round(n) / "records.jsonl").read_bytes() for n in self.rounds()))

    def records(self) -> Iterator[Record]:
        """Read back what the rounds measured, in order."""
        for number in self.rounds():
            for line in (self._round(number) / "records.jsonl").read_text().splitlines():
                yield from_json(json.loads(line))

    def _round(self, number: int) -> Path:
        return self._rounds / f"{number:04d}"

    def _payload(self, number: int, client: str) -> Path:
        return self._round(number) / "payloads" / f"{client}.safetensors"

    @contextmanager
    def log(self) -> Iterator[None]:
        """Have what goes wrong at clients written to `RUN/log.txt`, which exists only once something does."""
        handler = logging.FileHandler(self.path / "log.txt", delay=True, encoding="utf-8", errors="backslashreplace")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger = logging.getLogger("fgrpo")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()

    def _prune(self, newest: int) -> None:
        """Drop the large files of rounds that nobody resumes from."""
        needed: set[Path] = set()
        old = [number for number in self.rounds() if number <= newest - _KEPT_ROUNDS]
        for number in self.rounds():
            if number in old:
                for name in ("state.json", "state.safetensors"):
                    (self._round(number) / name).unlink(missing_ok=True)
            else:
                described = json.loads((self._round(number) / "state.json").read_text())
                needed |= Residuals.found(self._residuals, described.get("residuals", {})).files()
                needed |= {self._payload(at, client) for client, at in described.get("last_deltas", {}).items()}
        payloads = [self._round(number) / "payloads" for number in old]
        for path in {
            *self._residuals.glob("*/*"),
            *(file for folder in payloads for file in folder.glob("*")),
        } - needed:
            path.unlink()
        for folder in (*self._residuals.glob("*"), *payloads):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _tensors(state: ServerState) -> dict[str, Tensor]:
    return {
        "params": state.params_P,
        **{f"optimizer.{name}": tensor for name, tensor in state.optimizer.items()},
    }


def _under(prefix: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the names that begin with a prefix, each as (without it, whole)."""
    return ((name.removeprefix(prefix), name) for name in names if name.startswith(prefix))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    sync(path)
