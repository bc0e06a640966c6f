"""One contender in this process: `python -m rivals NAME OUT CONFIG CORES [OVERRIDES...]`; OUT is what it played."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rivals.record import Task

MODULES = {"fgrpo": "fgrpo_loop", "trl+flower": "flower_simulation", "trl+plain": "plain_averaging"}

if __name__ == "__main__":  # worker processes import this file too
    name, out, config_file, cores, *overrides = sys.argv[1:]
    contender = importlib.import_module(f"rivals.{MODULES[name]}")
    played = contender.play(Task(config_file, tuple(overrides), int(cores)))
    Path(out).write_text(json.dumps(asdict(played)))
