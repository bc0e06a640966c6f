"""Splitting one dataset into clients."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from fgrpo.config import PartitionConfig
from fgrpo.errors import ConfigError, how_to_install
from fgrpo.seeds import derive_seed

_LONGEST_NAME = 64  # it names files
_FEWEST_ROWS = 8  # of a client by dirichlet


@dataclass(frozen=True)
class Shares:
    """Each client's name and the positions of its rows; and what a person should know of the split, a line each."""

    rows: dict[str, list[int]]
    notes: tuple[str, ...] = ()


def split(partition: PartitionConfig, count: int, labels: Sequence[str] | None, seed: int) -> Shares:
    """Return which rows each client owns; every row belongs to one client.

    Args:
        count: rows in all.
        labels: the rows' values in `partition.column`, where one is named.
    """
    if partition.scheme == "iid":
        return Shares(_numbered(_evenly(count, partition.clients, seed)))
    if labels is None:
        raise ConfigError(f"partition.scheme {partition.scheme} needs partition.column")
    return Shares(_by_label(labels)) if partition.scheme == "column" else _dirichlet(partition, labels, seed)


def _numbered(shares: Sequence[list[int]]) -> dict[str, list[int]]:
    return {f"client-{number}": share for number, share in enumerate(shares)}


def _evenly(count: int, clients: int, seed: int) -> list[list[int]]:
    """Deal the rows out in a random order: files are often sorted by what makes clients differ."""
    if count < clients:
        raise ConfigError(f"partition.clients: {count} rows are too few for {clients} clients")
    order = list(range(count))
    random.Random(derive_seed(seed, "iid")).shuffle(order)
    return [sorted(order[number::clients]) for number in range(clients)]


def _by_label(labels: Sequence[str]) -> dict[str, list[int]]:
    """Return one client per label, named after it, in the order of the labels."""
    shares: dict[str, list[int]] = {label: [] for label in sorted(set(labels))}
    for position, label in enumerate(labels):
        shares[label].append(position)
    named: dict[str, list[int]] = {}
    for label, share in shares.items():
        plain = re.sub(r"[^\w.-]+", "_", label.strip())[:_LONGEST_NAME]
        name, number = plain, 1
        while name in named:
            number += 1
            name = f"{plain}-{number}"
        named[name] = share
    return named


def _dirichlet(partition: PartitionConfig, labels: Sequence[str], seed: int) -> Shares:
    try:
        import datasets  # takes seconds, and most runs have no need of it
        from flwr_datasets.partitioner import DirichletPartitioner
    except ImportError:
        raise ConfigError(f"partition: needs flwr-datasets: {how_to_install('flwr-datasets')}") from None
    splitter = DirichletPartitioner(
        partition.clients,
        "label",
        alpha=partition.alpha,
        min_partition_size=_FEWEST_ROWS,
        self_balancing=False,
        seed=seed,
    )
    splitter.dataset = datasets.Dataset.from_dict({"label": labels, "position": range(len(labels))})
    try:
        with warnings.catch_warnings(record=True) as redrawn:  # one each time that a client got too few rows
            warnings.simplefilter("always")
            shares = [list(splitter.load_partition(number)["position"]) for number in range(partition.clients)]
    except (ValueError, IndexError, KeyError) as error:
        raise ConfigError(
            f"partition: {len(labels)} rows cannot be split (dirichlet, {partition.clients} clients): "
            f"{str(error).splitlines()[0]}"
        ) from None
    if not redrawn:
        return Shares(_numbered(shares))
    times = len(redrawn) + 1
    return Shares(
        _numbered(shares),
        (f"partition: drawn {times} times until each client had {_FEWEST_ROWS} rows; a larger alpha is less skewed",),
    )
