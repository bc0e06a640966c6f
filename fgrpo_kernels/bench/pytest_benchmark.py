"""A file of results as pytest-benchmark reads it too: `pytest benchmarks/bench_gram.py --benchmark-compare <file>`."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence

from fgrpo_kernels.bench.results import Record

FOLDER = "benchmarks"  # of the tests, in the repository


def content(op: str, header: Record, records: Sequence[Record]) -> Record:
    """What pytest-benchmark asks of a file, by the names that `benchmarks/bench_<op>.py` gives its tests."""
    return {
        "machine_info": {"node": platform.node(), "machine": platform.machine(), "device": header["device"]},
        "commit_info": {"id": header["commit"], "dirty": header.get("modified", False)},
        "datetime": header["date"],
        "benchmarks": [_entry(op, record) for record in records if "seconds" in record],
    }


def test_name(op: str, case: str, contender: str) -> str:
    return f"test_{op}[{case}: {contender}]"


def _entry(op: str, record: Record) -> Record:
    name = test_name(op, record["case"], record["contender"])
    return {
        "group": None,
        "name": name,
        "fullname": f"{FOLDER}/bench_{op}.py::{name}",
        "params": None,
        "param": None,
        "extra_info": {},
        "options": {},
        "stats": _stats(record["seconds"]),
    }


def _stats(seconds: Sequence[float]) -> Record:
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else 3 * [seconds[0]]
    mean = statistics.fmean(seconds)
    return {
        "min": min(seconds),
        "max": max(seconds),
        "mean": mean,
        "stddev": statistics.stdev(seconds) if len(seconds) > 1 else 0.0,
        "rounds": len(seconds),
        "median": median,
        "iqr": high - low,
        "q1": low,
        "q3": high,
        "iqr_outliers": 0,
        "stddev_outliers": 0,
        "outliers": "0;0",
        "ld15iqr": min(seconds),
        "hd15iqr": max(seconds),
        "ops": 1 / mean,
        "total": sum(seconds),
        "iterations": 1,
    }
