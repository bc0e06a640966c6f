"""Splitting one dataset into clients."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from fgrpo.config import PartitionConfig
from fgrpo.errors import ConfigError
from fgrpo.seeds import derive_seed

_LONGEST_NAME = 64  # it names files


def split(partition: PartitionConfig, count: int, labels: Sequence[str] | None, seed: int) -> dict[str, list[int]]:
    """Return each client's name and the positions of its rows; every row belongs to one client.

    Args:
        count: rows in all.
        labels: the rows' values in `partition.column`, where one is named.
    """
    if partition.scheme == "iid":
        return _numbered(_evenly(count, partition.clients, seed))
    if labels is None:
        raise ConfigError(f"partition.scheme {partition.scheme} needs partition.column")
    return _by_label(labels) if partition.scheme == "column" else _numbered(_dirichlet(partition, labels, seed))


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


def _dirichlet(partition: PartitionConfig, labels: Sequence[str], seed: int) -> list[list[int]]:
    try:
        import datasets  # takes seconds, and most runs have no need of it
        from flwr_datasets.partitioner import DirichletPartitioner
    except ImportError:
        raise ConfigError("partition: needs flwr-datasets: pip install 'fgrpo[tasks]'") from None
    splitter = DirichletPartitioner(
        partition.clients, "label", alpha=partition.alpha, min_partition_size=8, self_balancing=False, seed=seed
    )
    splitter.dataset = datasets.Dataset.from_dict({"label": labels, "position": range(len(labels))})
    try:
        return [list(splitter.load_partition(number)["position"]) for number in range(partition.clients)]
    except (ValueError, IndexError, KeyError) as error:
        raise ConfigError(
            f"partition: {len(labels)} rows cannot be split (dirichlet, {partition.clients} clients): "
            f"{str(error).splitlines()[0]}"
        ) from None
