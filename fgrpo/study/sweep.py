"""A study without a file: a configuration, with several values for some of its keys."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import yaml

from fgrpo.errors import ConfigError
from fgrpo.show.text import printable
from fgrpo.study.spec import Arm, Scenario, Study, baselines, check_study, seeds

_OPENING, _CLOSING = "[{(", "]})"


def sweep(config: Path, options: Sequence[str], baseline_names: str = "") -> Study:
    """Return the study of options such as `--seed 0,1,2 --aggregation.rule fedavg,fgrpo`: an arm per combination.

    Args:
        options: of several values the commas are outside of brackets and quotation marks.
        baseline_names: baselines to compare with, separated by commas.

    Raises:
        ConfigError: an option is not `--key value`, or the seeds are not whole numbers.
    """
    keys = {key: split(value) for key, value in _read(options)}
    chosen_seeds = seeds("--seed", [_whole(seed) for seed in keys.pop("seed", ["0"])])
    varied = [key for key, values in keys.items() if len(values) > 1]
    arms = []
    for combination in product(*keys.values()):
        overrides = dict(zip(keys, combination, strict=True))
        said = [overrides[key] if len(varied) == 1 else f"{_short(key, varied)} {overrides[key]}" for key in varied]
        arms.append(Arm(", ".join(said) or "federated", overrides))
    wanted = [name for name in baseline_names.split(",") if name]
    fixed = {key: values[0] for key, values in keys.items() if len(values) == 1}
    arms += [Arm(name, fixed, baseline=name) for name in baselines(wanted, [arm.name for arm in arms])]
    study = Study(
        name=config.stem,
        base=config,
        arms=tuple(arms),
        scenarios=(Scenario(config.stem),),
        seeds=chosen_seeds,
        reference=arms[0].name,
        output_dir=Path("studies") / config.stem,
        sweep_of=config,
    )
    study = replace(study, text=_as_file(study, ["fgrpo", "sweep", str(config), *options, *_baseline_option(wanted)]))
    check_study(study)
    return study


def _baseline_option(names: Sequence[str]) -> list[str]:
    return ["--baselines", ",".join(names)] if names else []


def _as_file(study: Study, command: Sequence[str]) -> str:
    """Return the file of a study that plays the same cells, with the command that asked for them."""
    keys = {
        "base": str(study.base),
        "seeds": list(study.seeds),
        "reference": study.reference,
        "arms": {
            arm.name: {**({"baseline": arm.baseline} if arm.baseline else {}), **arm.overrides} for arm in study.arms
        },
        "scenarios": {scenario.name: {} for scenario in study.scenarios},
    }
    return f"# {printable(shlex.join(command))}\n{yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)}"


def _short(key: str, others: Sequence[str]) -> str:
    """Return a key's last part where that is enough to tell it from the others."""
    last = key.rpartition(".")[2]
    return last if [other.rpartition(".")[2] for other in others].count(last) == 1 else key


def split(value: str) -> list[str]:
    """Cut at the commas that are outside of brackets and quotation marks."""
    parts, depth, quote = [""], 0, ""
    for character in value:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
            if character == "," and depth == 0:
                parts.append("")
                continue
        parts[-1] += character
    return [part.strip() for part in parts]


def _read(options: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    rest = iter(options)
    for option in rest:
        key, equals, value = option.removeprefix("--").partition("=")
        if not option.startswith("--") or not key:
            raise ConfigError(f"unrecognized argument '{option}', expected --key value")
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise ConfigError(f"{key}: expected a value after --{key}")
        found.append((key, value))
    return found


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--seed: got '{text}', expected whole numbers separated by commas") from None
