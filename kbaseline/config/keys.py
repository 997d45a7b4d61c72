"""Strict YAML, and dotted keys into nested mappings and lists; independent of the configuration's schema."""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kbaseline.errors import ConfigError, one_line


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys, and aliases: a few lines of them can expand beyond any memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"alias *{event.anchor}; write it out", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            plain = isinstance(key_node, yaml.ScalarNode) and not key_node.tag.endswith(":merge")
            # As it is written: a class may be called 0 or no.
            key = key_node.value if plain else self.construct_object(key_node, deep=True)
            if plain:
                key_node.tag = "tag:yaml.org,2002:str"
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a string", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 wants a point in it, and a sign after the e.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$", re.ASCII), list("-+.0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """Parses YAML, with `1e-3` as a number and no duplicate keys.

    Raises:
        ConfigError: it is not valid YAML; the message begins with `where`.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid YAML ({one_line(error, 300)}).") from None


def read_yaml(path: Path) -> Any:
    """Reads a YAML file; an empty one is an empty mapping.

    Raises:
        ConfigError: it cannot be read, or is not valid YAML.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {str(path)!r}: cannot be read ({one_line(error, 300)}).") from None


def with_override(tree: Any, parts: list[str], value: Any, whole: str) -> Any:
    """A copy of `tree` with the value at `parts` replaced; `whole` is the dotted key for messages.

    Raises:
        ConfigError: an index is out of range, or the key continues below a plain value.
    """
    if not parts:
        return value
    head, rest = parts[0], parts[1:]
    if isinstance(tree, list | tuple):
        # Compared as strings: `int` refuses `²`, which is a digit to `isdigit`, and five thousand digits.
        if head not in map(str, range(len(tree))):
            raise ConfigError(f"{whole}: {head!r} must be an index from 0 to {len(tree) - 1}.")
        return [with_override(item, rest, value, whole) if str(i) == head else item for i, item in enumerate(tree)]
    if not isinstance(tree, dict | type(None)):
        raise ConfigError(f"{whole}: {tree!r} has no key {head!r}; shorten the key.")
    tree = dict(tree or {})
    return {**tree, head: with_override(tree.get(head), rest, value, whole)}


def flattened(tree: Any, prefix: str = "", *, lists: bool = True, whole: Collection[str] = ()) -> dict[str, Any]:
    """`{"stages": [{"epochs": 5}]}` -> `{"stages.0.epochs": 5}`: every plain value by its dotted key.

    With `lists=False`, a list counts as a plain value; so does the value of a dotted key in `whole`.
    """
    items: Iterable[tuple[Any, Any]]
    if prefix in whole:
        return {prefix: tree}
    if isinstance(tree, Mapping):
        items = tree.items()
    elif lists and isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        return {prefix: tree}
    parts = (flattened(item, _joined(prefix, name), lists=lists, whole=whole) for name, item in items)
    return {key: value for part in parts for key, value in part.items()}


def _joined(prefix: str, name: Any) -> str:
    return f"{prefix}.{name}" if prefix else str(name)
