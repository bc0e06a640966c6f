"""What jsonargparse and YAML say of a mistake in a configuration, as one line for a person."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from fgrpo.config import Config
from fgrpo.nearest import did_you_mean, nearest
from fgrpo.yaml_text import alternatives, item_of, kind_of

_TYPES = {
    "bool": "true or false",
    "dict": "keys and their values",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "str": "text",
}
_KEY = re.compile(r'Parser key "([\w.]+)":')
_EXPECTED = re.compile(r"Expected an? (?:<class '([\w.]+)'>|typing\.Literal\[(.*)\])(?:\. Got value: (.*))?")
_GIVEN = re.compile(r"Given value: (.*)")
_UNKNOWN = re.compile(r"(?:unrecognized arguments: --|Option '|Group '(\w+)' does not accept option ')([\w.]+)")
# Lines that say nothing more. How jsonargparse found the classes to try is of no use to anybody.
_WORDY = ("Problem with given class_path", "Does not validate", "Subtypes:", "Errors:", "Given value type:")


def one_line(message: str, given: Mapping[str, Any] | None = None) -> str:
    """Return jsonargparse's or YAML's message as one line, with the nearest known key where one is unknown.

    Args:
        given: the configuration's keys, to name a client that the message leaves out.
    """
    keys, expected, rest = list[str](), list[str](), list[str]()
    got = None
    for line in (part.strip().removeprefix("- ") for part in message.splitlines()):
        if within := _KEY.match(line):
            keys.append(within[1])
        elif wanted := _EXPECTED.match(line):
            kind, words, value = wanted.groups()
            expected += [f"one of {words}" if words else _TYPES.get(kind, kind)] if kind != "NoneType" else []
            got = value if got is None else got
        elif value_given := _GIVEN.match(line):
            got = value_given[1] if got is None else got  # the innermost comes first
        elif line and not line.startswith(_WORDY):
            rest.append(line)
    if expected:
        return f"{_place(given, keys, got)}: expected {' or '.join(expected)}, got {got}"
    said = " ".join(rest).replace(' in "<unicode string>"', "")
    if unknown := _UNKNOWN.match(said):
        key = ".".join(filter(None, unknown.groups()))
        if not keys:
            return f"unknown key '{key}'{_nearest_key(key)}"
        place = _place(given, [*keys, key], None).rpartition(".")[0]
        return f"{place}: unknown key '{key}'{did_you_mean(key, _names_in(place))}"
    return ": ".join([*([".".join(keys)] if keys else []), said])


def _place(given: Any, keys: Sequence[str], value: str | None) -> str:
    """Return the first place with a value (any if None) where keys lead, over the names between them."""
    return next(_places(given, keys, value, ()), ".".join(keys))


def _places(given: Any, keys: Sequence[str], value: str | None, at: tuple[str, ...]) -> Iterator[str]:
    if not keys and value in (None, str(given)):
        yield ".".join(at)
    elif isinstance(given, dict) and keys and keys[0] in given:
        yield from _places(given[keys[0]], keys[1:], value, (*at, keys[0]))
    elif isinstance(given, dict):
        for name, inner in given.items():
            yield from _places(inner, keys, value, (*at, name))
    elif isinstance(given, list):
        for inner in given:
            yield from _places(inner, keys, value, at)


def _names_in(place: str) -> list[str]:
    """Return the keys of the section at a place."""
    kind: Any = Config
    for name in place.split("."):
        kind = kind_of(kind, name)
        kind = kind if item_of(kind) is Any else item_of(kind)
    return [field.name for section in alternatives(kind) if is_dataclass(section) for field in fields(section)]


# Names that users of TRL, transformers and Flower know, and the keys here.
_ELSEWHERE = {
    "learning_rate": "train.lr",
    "num_generations": "rollout.group_size",
    "max_completion_length": "rollout.max_new_tokens",
    "per_device_train_batch_size": "rollout.prompts_per_step",
    "num_iterations": "train.updates_per_rollout",
    "gradient_accumulation_steps": "train.minibatches",
    "epsilon": "train.clip_low",
    "epsilon_high": "train.clip_high",
    "loss_type": "train.reduction",
    "scale_rewards": "train.advantage_scale",
    "max_steps": "rounds",
    "num_train_epochs": "rounds",
    "num_rounds": "rounds",
    "num_server_rounds": "rounds",
    "fraction_fit": "participation.fraction",
    "fraction_train": "participation.fraction",
    "proximal_mu": "train.proximal",
    "model_name_or_path": "model",
}


def _nearest_key(word: str) -> str:
    last = word.rpartition(".")[2]
    if last in _ELSEWHERE:
        return f"; it is {_ELSEWHERE[last]} here"
    known = dict.fromkeys(_paths(Config, ""))
    named = [path for path in known if path.rpartition(".")[2] == last and path != word]
    near = nearest(word, {*known, *(path.rpartition(".")[2] for path in known)})
    if not named and near is not None:
        named = [near] if near in known else [path for path in known if path.rpartition(".")[2] == near]
    return f"; did you mean {' or '.join(repr(path) for path in named[:3])}?" if named else ""


def _paths(kind: type, prefix: str) -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        yield prefix + name
        for inner in (hint, *get_args(hint), *(a for arg in get_args(hint) for a in get_args(arg))):
            if isinstance(inner, type) and is_dataclass(inner):
                yield from _paths(inner, f"{prefix}{name}.")
