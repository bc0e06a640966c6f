"""YAML in which names stay text: `1`, `on`, `no` and `null` are numbers, truth values and nothing to YAML itself."""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

_NULL, _TEXT, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("null", "str", "merge"))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 but for numbers such as 1e-4, which it takes for text, and dates, which stay text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(?:\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: node.value)


def load(text: str, kind: Any = Any) -> Any:
    """Return what a YAML text holds, with every key of a mapping as it was written.

    Args:
        kind: the type that the whole is meant for, such as a dataclass; a value that it wants as text is text as it
            was written, too. Null stays null.

    Raises:
        yaml.YAMLError: it is not YAML, or a mapping has a key twice.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _keep_text(node, kind)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def load_value(text: str, kind: Any) -> Any:
    """Return what one value, given by itself, means for a type; where only text will do it is the text, or null."""
    kinds = alternatives(kind)
    if kinds == [str]:
        return None if text == "null" and NoneType in get_args(kind) else text
    return load(text, kind)


def kind_of(kind: Any, key: str) -> Any:
    """Return the type of the value at a key of a mapping that is meant for a type; Any where there is no such key."""
    kinds = alternatives(kind)
    fields = next((get_type_hints(k) for k in kinds if is_dataclass(k)), {})
    values = next((get_args(k)[1] for k in kinds if get_origin(k) is dict), Any)
    return fields.get(key, values)


def item_of(kind: Any) -> Any:
    """Return the type of the items of a list that is meant for a type; Any if it is none of lists."""
    return next((get_args(k)[0] for k in alternatives(kind) if get_origin(k) is list), Any)


def alternatives(kind: Any) -> list[Any]:
    """Return the types that a value may have, without None; a choice between words counts as text."""
    if get_origin(kind) in (Union, UnionType):
        return [one for part in get_args(kind) if part is not NoneType for one in alternatives(part)]
    if get_origin(kind) is Literal:
        return [str]
    return [kind]


def is_section(kind: Any) -> bool:
    """Whether a type is a section with keys of its own, not a mapping of names."""
    return any(is_dataclass(k) for k in alternatives(kind))


def _keep_text(node: yaml.Node, kind: Any) -> None:
    """Mark as text what is to stay text, in a node and below."""
    kinds = alternatives(kind)
    if isinstance(node, yaml.ScalarNode):
        if str in kinds and node.tag != _NULL:
            node.tag = _TEXT
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _keep_text(value, item_of(kind))
    elif isinstance(node, yaml.MappingNode):
        _keep_text_in_mapping(node, kind)


def _keep_text_in_mapping(node: yaml.MappingNode, kind: Any) -> None:
    seen = set()
    for key, value in node.value:
        if key.tag == _MERGE or not isinstance(key, yaml.ScalarNode):
            continue
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' is there twice", key.start_mark)
        seen.add(key.value)
        key.tag = _TEXT
        _keep_text(value, kind_of(kind, key.value))
