"""Tasks from a Hugging Face dataset: a prompt column, an answer column, and a reward."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgrpo.client.tasks.rewards import Reward
from fgrpo.config import TaskConfig
from fgrpo.errors import ConfigError
from fgrpo.nearest import did_you_mean
from fgrpo.records import Example

if TYPE_CHECKING:
    import datasets

_LOCAL_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


class DatasetTask:
    """The rows of a dataset in a seeded order, again and again."""

    def __init__(self, name: str, rows: datasets.Dataset, config: TaskConfig, seed: int, reward: Reward) -> None:
        self.name = name
        self._rows = rows
        self._prompt_column, self._answer_column = config.prompt_column, config.answer_column
        self._reward = reward
        self._order = list(range(len(rows)))
        random.Random(seed).shuffle(self._order)

    def example(self, index: int) -> Example:
        row = self._rows[self._order[index % len(self._order)]]
        return Example(str(row[self._prompt_column]), str(row[self._answer_column]), row)

    def score(self, example: Example, completion: str) -> float:
        return self._reward(completion, example.answer)


def load_rows(config: TaskConfig) -> datasets.Dataset:
    """Return the rows that `config` names, from the hub or from a local file."""
    import datasets  # takes seconds, and many runs have none

    assert config.dataset is not None
    name, suffix = config.dataset, Path(config.dataset).suffix
    try:
        if suffix in _LOCAL_FORMATS:
            rows = datasets.load_dataset(_LOCAL_FORMATS[suffix], data_files=name, split=config.split)
        else:
            rows = datasets.load_dataset(name, config.subset, split=config.split)
    except Exception as error:  # datasets raises a dozen kinds, and asks the network before it gives up
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"dataset '{name}' (split {config.split}) cannot be loaded, neither from a local "
            f"{'/'.join(_LOCAL_FORMATS)} file nor from the hub: {reason}"
        ) from None
    check_columns(rows, config.dataset, config.prompt_column, config.answer_column)
    if len(rows) == 0:
        raise ConfigError(f"dataset '{name}' (split {config.split}) has no rows")
    return rows


def check_columns(rows: Any, dataset: str, *columns: str) -> None:
    """Raise ConfigError unless every column exists."""
    for column in columns:
        if column not in rows.column_names:
            raise ConfigError(
                f"dataset '{dataset}' has no column '{column}'{did_you_mean(column, rows.column_names)} "
                f"(it has: {', '.join(rows.column_names)})"
            )
