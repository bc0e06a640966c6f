"""Run by `test_trl_processes`, twice at a time under torchrun: prints curves without and with the plug-in."""

import json
import os
import sys
from pathlib import Path

from tiny_grpo import train

from fgrpo_kernels.integrations.trl import accelerate_trainer

RUNS = {
    "token mean": {"per_device_train_batch_size": 4},
    "sequence mean": {"loss_type": "grpo", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
}
folder = Path(sys.argv[1]) / os.environ["RANK"]
curves = {
    name: [
        train(folder, prepare, **options | {"steps": 3}).logs for prepare in (lambda trainer: None, accelerate_trainer)
    ]
    for name, options in RUNS.items()
}
if os.environ["RANK"] == "0":
    print(json.dumps(curves))
