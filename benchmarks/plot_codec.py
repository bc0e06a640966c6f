"""Draws the codec's throughput from a JSON file of bench_codec.py.

    python benchmarks/plot_codec.py codec.json docs/codec.png

Left: aggregation by number of clients and bits, and the limit that the bytes and a copy of memory set. Right: eight
clients beside other ways to average deltas.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLORS = {"int8": "#4053d3", "int4": "#b51d14", "int2": "#00845a"}


def by_clients(axes: Axes, results: list[dict[str, Any]]) -> None:
    for codec, color in COLORS.items():
        points = sorted((r for r in results if r.get("codec") == codec), key=lambda r: r["clients"])
        clients = [r["clients"] for r in points]
        # Values that a copy's bandwidth lets through: clients * values over the bytes of one aggregation.
        limits = [r["Gparam/s"] / r["share"] for r in points]
        axes.plot(clients, [r["Gparam/s"] for r in points], "o-", color=color, label=codec)
        axes.plot(clients, limits, "--", color=color, linewidth=1, label=f"{codec}, bandwidth limit")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("clients K")
    axes.set_ylabel("K x parameters, 1e9 a second")
    axes.set_ylim(bottom=0)
    axes.set_title("aggregate, block 64")
    axes.legend(fontsize=7)


def beside_others(axes: Axes, results: list[dict[str, Any]]) -> None:
    wanted = {
        "aggregate int4, block 64, warm": "ours int4, warm",
        "aggregate int4, block 64, cold": "ours int4, new memory",
        "aggregate int8, block 64, warm": "ours int8, warm",
        "aggregate int8, block 64, cold": "ours int8, new memory",
        "FBGEMM bags int4, block 64": "FBGEMM 4 bit",
        "FBGEMM bags int8, block 64": "FBGEMM 8 bit",
        "torch float32 add_": "torch float32",
        "Flower aggregate_arrayrecords, float32": "Flower float32",
    }
    rates = {label: r["Gparam/s"] for name, label in wanted.items() for r in results if r["name"] == name}
    labels = list(rates)[::-1]
    colors = ["#4053d3" if label.startswith("ours") else "#999999" for label in labels]
    bars = axes.barh(labels, [rates[label] for label in labels], color=colors)
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    axes.margins(x=0.15)
    axes.set_xlabel("K x parameters, 1e9 a second")
    axes.set_title("eight clients, block 64")


def main(source: Path, target: Path) -> None:
    data = json.loads(source.read_text())
    results = [benchmark["extra_info"] for benchmark in data["benchmarks"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    by_clients(left, results)
    beside_others(right, results)
    cpu = data["machine_info"]["cpu"]
    figure.suptitle(f"{cpu['brand_raw']}, {cpu['count']} cores, {data['datetime'][:10]}", fontsize=9)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
