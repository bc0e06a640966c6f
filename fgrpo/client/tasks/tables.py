"""Reading a dataset: from a local file with every cell as it was written, or from the hub."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fgrpo.client.tasks.cells import CellError, WrittenFloat, WrittenInt, answer_of, label_of, prompt_of
from fgrpo.config import TaskConfig
from fgrpo.errors import ConfigError
from fgrpo.nearest import did_you_mean
from fgrpo.records import Chat

if TYPE_CHECKING:
    import datasets  # takes seconds: imported only where a table needs it

_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_AS_TEXT = {"dtype": str, "keep_default_na": False, "na_filter": False}  # a CSV file's cells, read by datasets
_SPACE = re.compile(r"\s*")

T = TypeVar("T")


@dataclass(frozen=True)
class Table:
    """The rows of a dataset, checked: every one has a prompt and, where answers are asked for, an answer.

    Attributes:
        name: the file or hub id.
        columns: names of the columns.
        rows: the rows, by position.
        numbers: each row's number in the file, counted from 1, for messages.
        prompts: the rows' prompts.
        answers: the rows' answers; empty texts where the task has no answer column.
        digest: changes whenever the file does, or, for a dataset of the hub, a prompt or an answer.
    """

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Mapping[str, Any]]
    numbers: Sequence[int]
    prompts: Sequence[str | Chat]
    answers: Sequence[str]
    digest: str

    def labels(self, column: str) -> list[str]:
        """Return the labels in a column, as text."""
        check_columns(self.columns, self.name, column)
        return _converted(self.name, column, _cells(self.rows, column), self.numbers, label_of)


def load_table(config: TaskConfig) -> Table:
    """Read the rows that `config.dataset` and `config.split` name.

    Raises:
        ConfigError: it cannot be read, a column is missing, or a cell cannot be a prompt or an answer.
    """
    assert config.dataset is not None
    name, file = config.dataset, Path(config.dataset)
    digest = _digest_of_file(file) if file.suffix.lower() in _FORMATS and file.is_file() else None
    rows, columns = _local(file) if digest is not None else _from_datasets(config)
    numbers: Sequence[int] = range(1, len(rows) + 1)
    if digest is not None and config.split != "train":
        kept = _positions(config, len(rows))
        rows, numbers = [rows[i] for i in kept], [i + 1 for i in kept]
    if len(rows) == 0:
        raise ConfigError(f"dataset '{name}' (split {config.split}) has no rows")
    check_columns(columns, name, config.prompt_column)
    prompts = _converted(name, config.prompt_column, _cells(rows, config.prompt_column), numbers, prompt_of)
    answers = [""] * len(rows)
    if config.answer_column is not None:
        check_columns(columns, name, config.answer_column)
        answers = _converted(name, config.answer_column, _cells(rows, config.answer_column), numbers, answer_of)
    return Table(name, tuple(columns), rows, numbers, prompts, answers, digest or _digest_of_texts(prompts, answers))


def check_columns(known: Sequence[str], dataset: str, *columns: str) -> None:
    """Raise ConfigError unless every column exists."""
    for column in columns:
        if column not in known:
            raise ConfigError(
                f"dataset '{dataset}' has no column '{column}'{did_you_mean(column, known)} "
                f"(it has: {', '.join(known)})"
            )


def _local(file: Path) -> tuple[Sequence[Mapping[str, Any]], Sequence[str]]:
    try:
        if file.suffix.lower() == ".parquet":
            return _parquet(file)
        rows = list(_csv_rows(file) if file.suffix.lower() == ".csv" else _json_rows(file))
    except UnicodeDecodeError:
        raise ConfigError(f"dataset '{file}' is not a text file in UTF-8") from None
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"dataset '{file}' cannot be read: {_first_line(error)}") from None
    return rows, list(dict.fromkeys(column for row in rows for column in row))


def _parquet(file: Path) -> tuple[datasets.Dataset, Sequence[str]]:
    import datasets

    try:
        table = datasets.Dataset.from_parquet(str(file))
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(str(error)) from None
    return table, table.column_names


def _csv_rows(file: Path) -> Iterator[dict[str, str]]:
    """Read every cell as text: what YAML, pandas or a spreadsheet would take for a number stays as it is."""
    limit = csv.field_size_limit(2**31 - 1)  # a prompt may be long
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines, strict=True)
            header = next(reader, [])
            if twice := {column for column in header if header.count(column) > 1}:
                raise ValueError(f"column '{min(twice)}' is there twice")
            filled = (cells for cells in reader if cells)
            for number, cells in enumerate(filled, start=1):
                if len(cells) != len(header):
                    raise ValueError(
                        f"row {number} (line {reader.line_num}) has {len(cells)} cells, the header {len(header)}; "
                        "is a comma or a quote missing?"
                    )
                yield dict(zip(header, cells, strict=True))
    finally:
        csv.field_size_limit(limit)


def _json_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Read one list of objects, or objects one after another as in JSON Lines; numbers remember their text."""
    decoder = json.JSONDecoder(parse_int=WrittenInt, parse_float=WrittenFloat)
    text = file.read_text(encoding="utf-8-sig").strip()
    values, at = [], 0
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        values.append(value)
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
    rows = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is {json.dumps(row)[:60]}, expected an object of columns")
        yield row


def _from_datasets(config: TaskConfig) -> tuple[datasets.Dataset, Sequence[str]]:
    """Let datasets find it: on the hub, or from an address or a pattern of files."""
    import datasets

    assert config.dataset is not None
    kind = _FORMATS.get(Path(config.dataset).suffix.lower())
    try:
        if kind is None:
            rows = datasets.load_dataset(config.dataset, config.subset, split=config.split)
        else:
            options = _AS_TEXT if kind == "csv" else {}
            rows = datasets.load_dataset(kind, data_files=config.dataset, split=config.split, **options)
    except Exception as error:  # datasets raises a dozen kinds, and asks the network before it gives up
        raise ConfigError(
            f"dataset '{config.dataset}' (split {config.split}) cannot be loaded, neither from a local "
            f"{'/'.join(_FORMATS)} file nor from the hub: {_first_line(error)}"
        ) from None
    return rows, rows.column_names


def _positions(config: TaskConfig, count: int) -> list[int]:
    """Return which rows of a local file a split such as `train[:90%]` takes."""
    import datasets

    try:
        parts = datasets.ReadInstruction.from_spec(config.split).to_absolute({"train": count})
    except (ValueError, AssertionError) as error:
        raise ConfigError(
            f"dataset '{config.dataset}': a local file has the split train or a part of it such as train[:90%], got "
            f"{config.split}: {_first_line(error)}"
        ) from None
    return [i for part in parts for i in range(part.from_ or 0, count if part.to is None else part.to)]


def _cells(rows: Any, column: str) -> Iterator[Any]:
    """Return a column's cells; one column of many is read at once where the rows lie on disk."""
    if isinstance(rows, list):
        return (row.get(column) for row in rows)
    narrow = {"float16": np.float16, "float32": np.float32}.get(getattr(rows.features[column], "dtype", ""))
    if narrow is None:
        return iter(rows[column])
    return (cell if cell is None else float(str(narrow(cell))) for cell in rows[column])  # 0.1, not 0.10000000149


def _converted(
    name: str, column: str, cells: Iterator[Any], numbers: Sequence[int], convert: Callable[[Any], T]
) -> list[T]:
    converted = []
    for number, cell in zip(numbers, cells, strict=True):
        try:
            converted.append(convert(cell))
        except CellError as error:
            raise ConfigError(f"dataset '{name}', row {number}, column '{column}': it is {error}") from None
    return converted


def _digest_of_file(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"dataset '{file}' cannot be read: {error.strerror}") from None


def _digest_of_texts(prompts: Sequence[str | Chat], answers: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for prompt, answer in zip(prompts, answers, strict=True):
        digest.update(json.dumps([str(prompt), answer]).encode())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
