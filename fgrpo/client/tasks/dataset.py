"""Tasks from a dataset: a prompt column, an answer column, and a reward."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from fgrpo.client.tasks.base import Row
from fgrpo.client.tasks.scoring import WeightedReward
from fgrpo.client.tasks.tables import Table
from fgrpo.records import Example


class DatasetTask:
    """Rows of a table in a seeded order, again and again.

    Args:
        positions: which of the table's rows; all of them if None.
        labels: the label of every row of the table, where it was split by one.
        test: the table of its test set, where it has one.
    """

    def __init__(
        self,
        name: str,
        table: Table,
        seed: int,
        rewards: Sequence[WeightedReward],
        positions: Sequence[int] | None = None,
        labels: Sequence[str] | None = None,
        test: Table | None = None,
    ) -> None:
        self.name, self.rewards = name, rewards
        self._table = table
        self._order = list(range(len(table.rows)) if positions is None else positions)
        random.Random(seed).shuffle(self._order)
        self.rows: Sequence[Row] | None = [Row(table.prompts[i], labels[i] if labels else None) for i in self._order]
        self.files: Mapping[str, str] = {table.name: table.digest}
        self.test: Sequence[Example] | None = None
        if test is not None:
            self.files = {**self.files, f"{test.name} (test set)": test.digest}
            self.test = [_example(test, row) for row in range(len(test.rows))]

    def example(self, index: int) -> Example:
        return _example(self._table, self._order[index % len(self._order)])


def _example(table: Table, row: int) -> Example:
    return Example(table.prompts[row], table.answers[row], table.rows[row])
