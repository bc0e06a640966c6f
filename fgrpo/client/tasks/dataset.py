"""Tasks from a dataset: a prompt column, an answer column, and a reward."""

from __future__ import annotations

import random
from collections.abc import Sequence

from fgrpo.client.tasks.rewards import Reward
from fgrpo.client.tasks.tables import Table
from fgrpo.records import Example


class DatasetTask:
    """Rows of a table in a seeded order, again and again.

    Args:
        positions: which of the table's rows; all of them if None.
    """

    def __init__(
        self, name: str, table: Table, seed: int, reward: Reward, positions: Sequence[int] | None = None
    ) -> None:
        self.name = name
        self._table, self._reward = table, reward
        self._order = list(range(len(table.rows)) if positions is None else positions)
        random.Random(seed).shuffle(self._order)

    def example(self, index: int) -> Example:
        row = self._order[index % len(self._order)]
        return Example(self._table.prompts[row], self._table.answers[row], self._table.rows[row])

    def score(self, example: Example, completion: str) -> float:
        return self._reward(completion, example.answer)
