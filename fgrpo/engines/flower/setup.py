"""The configuration of a run on Flower: the run's keys from the app, the clients from each node's own file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app.user_config import UserConfig

from fgrpo.config import Config
from fgrpo.errors import ConfigError
from fgrpo.paths import found_from
from fgrpo.settings import make_config, read_keys

_WHERE = "[tool.flwr.app.config]"
SIMULATION = "simulation.yaml"  # in the app's folder


def run_config(keys: UserConfig) -> Config:
    """Return the run's configuration, without clients.

    Args:
        keys: `context.run_config`, whose names are those of the YAML, as in `train.lr`.

    Raises:
        ConfigError: a key is not one of a run on Flower.
    """
    return _checked(make_config({}, options(keys), _WHERE))


def node_config(run: UserConfig, own: UserConfig, app: Path) -> tuple[Config, Path]:
    """Return the run's configuration with a node's own clients, and the node's folder.

    A node that was started with `--node-config 'clients="FILE"'` reads its clients there, and keeps what it keeps in
    `folder`, or else beside that file. One of a simulation gets its share of the app's `simulation.yaml`, and a
    folder beside the run's.

    Raises:
        ConfigError: there are no clients for this node.
    """
    config = run_config(run)
    if "clients" in own:
        file = Path(str(own["clients"])).expanduser()
        folder = Path(str(own["folder"])).expanduser() if "folder" in own else file.with_suffix(".state")
        return _with_clients(config, file, _clients(file)), folder
    if "partition-id" not in own:
        raise ConfigError("node: whose data is here? Start the SuperNode with --node-config 'clients=\"FILE\"'")
    assert config.output_dir is not None
    number, count = int(own["partition-id"]), int(own["num-partitions"])
    share = dict(list(_clients(app / SIMULATION).items())[number::count])
    return _with_clients(config, app / SIMULATION, share), Path(f"{config.output_dir}.nodes") / str(number)


def _clients(file: Path) -> dict[str, Any]:
    keys = read_keys(file)
    clients = keys.get("clients")
    if keys.keys() != {"clients"} or not isinstance(clients, dict):
        raise ConfigError(f"node: {file}: expected the one key clients:, got {', '.join(keys) or 'none'}")
    return clients


def _with_clients(config: Config, file: Path, clients: dict[str, Any]) -> Config:
    keys = found_from({"clients": clients}, file.parent)
    rewards = replace(config.rewards, folder=config.rewards.folder or str(file.parent))
    return replace(config, clients=make_config(keys, (), file).clients, rewards=rewards)


def options(keys: UserConfig) -> list[str]:
    """Return the app's keys as options of the command line."""
    return [f"--{key}={_text(key, value)}" for key, value in keys.items()]


def _text(key: str, value: Any) -> str:
    if key == "output_dir":
        return str(Path(str(value)).expanduser())
    return str(value).lower() if isinstance(value, bool) else str(value)


def _checked(config: Config) -> Config:
    if config.clients or config.partition is not None:
        raise ConfigError(f"{_WHERE}: clients and partition belong to the nodes, each in a file of its own")
    if config.output_dir is None:
        raise ConfigError(f"{_WHERE}: output_dir is missing; a run that is started again goes on from what is there")
    if config.engine.workers or config.engine.stacked:
        raise ConfigError(f"{_WHERE}: engine.workers and engine.stacked are for clients of one machine")
    return config
