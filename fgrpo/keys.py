"""Every key of the configuration, with its type, its default and what it does, as a text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse

from fgrpo import yaml_text
from fgrpo.config import Config
from fgrpo.errors import ConfigError
from fgrpo.nearest import did_you_mean

_WIDTH = 100
# Enough for a first run; everything else has a value that does.
_FIRST = ("rounds", "model", "lora", "train.lr", "rollout.max_new_tokens", "aggregation.rule")


@dataclass(frozen=True)
class Key:
    """One key: its whole name, and what is known of it."""

    name: str
    kind: str
    default: str
    help: str

    def mentions(self, word: str) -> bool:
        return word.lower().replace("-", "_") in f"{self.name} {self.help}".lower()


def all_keys() -> list[Key]:
    """Return every key that a configuration may have, in the order of its sections; of names that are free, `NAME`."""
    return list(_keys_of(Config, ""))


def print_keys(words: Sequence[str]) -> None:
    """Print the keys with one of the words in their name or help; without words all of them, the first to turn first.

    Raises:
        ConfigError: no key has any of the words.
    """
    keys = all_keys()
    shown = [key for key in keys if not words or any(key.mentions(word) for word in words)]
    if not shown:
        raise ConfigError(f"no key has {' or '.join(words)}{did_you_mean(words[0], [key.name for key in keys])}")
    if not words:
        by_name = {key.name: key for key in keys}
        _print("The dial to turn first is `rounds`; these come next:", [by_name[name] for name in _FIRST])
    for section, own in _by_section(shown):
        _print(section, own)
    if not words:
        print("In the YAML file, or after the command: fgrpo train CONFIG --train.lr 1e-4 --aggregation.rule fedavg")


def _keys_of(section: type, prefix: str) -> Iterator[Key]:
    helps = {parameter.arg_name: parameter.description or "" for parameter in parse(section.__doc__ or "").params}
    hints = get_type_hints(section)
    for field in fields(section):
        hint, name = hints[field.name], prefix + field.name
        inner, suffix = _inner_section(hint)
        help_text = " ".join(helps[field.name].split())
        if inner is None:
            yield Key(name, _in_words(hint), _default(field), help_text)
        else:
            if suffix or NoneType in get_args(hint):
                yield Key(name, _in_words(hint), _default(field), help_text)
            yield from _keys_of(inner, f"{name}{suffix}.")


def _inner_section(hint: Any) -> tuple[type | None, str]:
    """Return the section that a key holds, and what stands between the key and the section's own keys."""
    for kind in yaml_text.alternatives(hint):
        if is_dataclass(kind):
            return kind, ""  # type: ignore[return-value]
        for item, suffix in ((yaml_text.item_of(kind), "[]"), (yaml_text.kind_of(kind, "NAME"), ".NAME")):
            if is_dataclass(item):
                return item, suffix  # type: ignore[return-value]
    return None, ""


def _in_words(hint: Any) -> str:
    if hint is NoneType:
        return "null"
    if get_origin(hint) is Literal:
        return " | ".join(get_args(hint))
    if get_origin(hint) is list:
        return f"list of {_in_words(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return f"mapping of {_in_words(get_args(hint)[1])}"
    if get_args(hint):
        return " | ".join(map(_in_words, get_args(hint)))
    words = {str: "text", int: "int", float: "number", bool: "true | false", Any: "anything"}
    return "section" if is_dataclass(hint) else words[hint]


def _default(field: Any) -> str:
    if field.default is not MISSING:
        plain = field.default is None or isinstance(field.default, bool)  # as YAML has it
        return {None: "null", True: "true", False: "false"}[field.default] if plain else str(field.default)
    return "" if field.default_factory is MISSING else "empty"


def _by_section(keys: Sequence[Key]) -> Iterator[tuple[str, list[Key]]]:
    sections = dict.fromkeys(key.name.partition(".")[0] if "." in key.name else "" for key in keys)
    for section in sorted(sections, key=bool):
        own = [key for key in keys if (key.name.partition(".")[0] if "." in key.name else "") == section]
        yield section or "The run", own


def _print(title: str, keys: Sequence[Key]) -> None:
    print(title)
    for key in keys:
        head = f"{key.name}: {key.kind}" + (f" = {key.default}" if key.default else "")
        print(textwrap.fill(head, _WIDTH, initial_indent=" " * 2, subsequent_indent=" " * 4))
        print(textwrap.fill(key.help, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6))
    print()
