"""TRL's trainer for one client after another, and a float32 mean: what a short script does without a framework."""

from __future__ import annotations

import time

import torch

from rivals.held_out import held_out_accuracy
from rivals.record import Played, Round, Task, Work
from rivals.trl_client import TrlClients


def play(task: Task) -> Played:
    config, played = task.config(), Played()
    clients = TrlClients(config, threads=task.cores)
    parameters = {name: p.clone() for name, p in clients.parameters().items()}
    for number in range(1, config.rounds + 1):
        start = time.monotonic()
        sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
        works = []
        for client in range(len(clients.clients)):
            works.append(clients.train(client, parameters, number))
            for name, p in clients.parameters().items():
                sums[name].add_(p, alpha=works[-1].sequences)
        work = Work.total(works)
        parameters = {name: p.div_(work.sequences) for name, p in sums.items()}
        end = time.monotonic()
        uplink = len(works) * sum(p.nbytes for p in parameters.values())
        played.rounds.append(Round(start, end, end - start, {}, uplink, work))
    played.after.update(held_out_accuracy(config, parameters))
    return played
