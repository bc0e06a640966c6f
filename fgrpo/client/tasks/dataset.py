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
    """

    def __init__(
        self,
        name: str,
        table: Table,
        seed: int,
        rewards: Sequence[WeightedReward],
        positions: Sequence[int] | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        self.name, self.rewards = name, rewards
        self._table = table
        self._order = list(range(len(table.rows)) if positions is None else positions)
        random.Random(seed).shuffle(self._order)
        self.rows: Sequence[Row] | None = [Row(table.prompts[i], labels[i] if labels else None) for i in self._order]
        self.files: Mapping[str, str] = {table.name: table.digest}

    def example(self, index: int) -> Example:
        row = self._order[index % len(self._order)]
        return Example(self._table.prompts[row], self._table.answers[row], self._table.rows[row])
