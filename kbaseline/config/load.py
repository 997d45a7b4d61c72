"""Loads a configuration from YAML and dotted overrides, with a one-line error, and prints it with every key explained.

Imports neither Keras nor JAX, so that `--help` and an unknown key get an answer at once.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from kbaseline.config.keys import flattened, parse_yaml, read_yaml, with_override
from kbaseline.config.paths import expand_home
from kbaseline.config.schema import Config, Section, StageConfig, TTAConfig
from kbaseline.errors import ConfigError, did_you_mean

_OWN_NAMES = ("data.class_weights",)
"""Keys that hold a mapping whose own keys are the user's names, with dots and all."""


def bundled_configs() -> dict[str, Path]:
    """Name -> file of the configurations that come with kbaseline."""
    here = Path(__file__).parents[1]
    # In a wheel they lie inside the package, in a checkout beside it.
    folder = next((f for f in (here / "configs", here.parent / "configs") if f.is_dir()), here)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def load_config(
    source: str | Path | Mapping[str, Any] | Config | None = None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """Builds the configuration of a run.

    Args:
        source: a YAML file, the name of a bundled one (`"quickstart"`), a mapping, a `Config`, or None
            for the defaults, which are the article's recipe.
        overrides: dotted key -> value, e.g. `{"stages.0.epochs": 5}`.

    Raises:
        ConfigError: a missing or unreadable file, an unknown key, or a value that breaks a rule.
    """
    where = "configuration"
    if isinstance(source, Config):
        tree: Any = source.model_dump(mode="json")
    elif isinstance(source, Mapping | None):
        tree = dict(source or {})
    else:
        path = _config_file(source)
        where, tree = str(path), read_yaml(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: the top level must be a mapping; got {type(tree).__name__}.")
    for key, value in (overrides or {}).items():
        if key.startswith("stages."):
            # Without stages of its own, a configuration overrides the default ones.
            tree = {"stages": Config().model_dump(mode="json")["stages"], **tree}
        parts = _parts(key)
        section = tree.get(parts[0])
        if ".".join(parts[:-1]) in _OWN_NAMES and isinstance(section, dict) and isinstance(section.get(parts[1]), str):
            # A weight of its own for one class takes the place of `none` and `auto`.
            tree = with_override(tree, parts[:-1], {}, key)
        tree = with_override(tree, parts, value, key)
    light = None
    if tree.get("minutes") is not None:
        light = read_yaml(bundled_configs()["light"])
        tree = _merged(light, tree)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_problem(error, tree)}") from None
    if light is not None:
        _check_can_plan(config, Config.model_validate(light))
    return config


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """One tree over another, section by section."""
    both = {key: _merged(under[key], value) for key, value in over.items() if _are_sections(under.get(key), value)}
    return {**under, **over, **both}


def _are_sections(*trees: Any) -> bool:
    return all(isinstance(tree, Mapping) for tree in trees)


def _check_can_plan(config: Config, light: Config) -> None:
    """Raises a `ConfigError` where a configuration says itself what `minutes` is to choose."""
    if config.stages != light.stages:
        raise ConfigError(f"minutes {config.minutes:g}: chooses the stages itself; leave out stages, or minutes.")
    if config.data.batch_size == "auto":
        raise ConfigError(f"minutes {config.minutes:g}: needs data.batch_size as a number; got 'auto'.")


def dotted(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{"data": {"limit": 500}}` -> `{"data.limit": 500}`, for `load_config`; class weights stay one mapping."""
    return flattened(overrides, lists=False, whole=_OWN_NAMES)


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`["stages.0.epochs=5"]` -> `{"stages.0.epochs": 5}`; values are read as YAML.

    Raises:
        ConfigError: an item has no `=`, or a value is not valid YAML.
    """
    parsed = {}
    for item in assignments:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {item!r}: must be KEY=VALUE, for instance --set data.size=96.")
        parsed[key.strip()] = parse_yaml(text, f"--set {item!r}")
    return parsed


def describe(config: Config) -> str:
    """The resolved configuration as commented YAML: every key with its value and its meaning."""
    lines: list[str] = []
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        items = value if isinstance(value, tuple) else (value,)
        meaning = field.description or (items[0].__doc__ if isinstance(items[0], Section) else "")
        lines.append(f"# {' '.join((meaning or '').split())}")
        if not isinstance(items[0], Section):
            lines += [f"{name}: {_flow(value)}", ""]
            continue
        lines.append(f"{name}:")
        for number, item in enumerate(items):
            for position, (key, sub) in enumerate(type(item).model_fields.items()):
                dash = "  " if not isinstance(value, tuple) else "- " if position == 0 else "  "
                entry = f"{dash}{key}: {_flow(getattr(item, key))}"
                note = f"{' '.join((sub.description or '').split())}{_rule(sub)}"
                lines.append(f"{entry:<36} # {note}" if number == 0 else entry)
        lines.append("")
    return "\n".join(lines)


def _rule(field: FieldInfo) -> str:
    """The values a setting may take and its default, for a comment."""
    parts = (field.annotation,) if get_origin(field.annotation) is Literal else get_args(field.annotation)
    choices = [repr(one) for part in parts if get_origin(part) is Literal for one in get_args(part)]
    others = {part for part in parts if get_origin(part) is not Literal} - {type(None), ...}
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{sign} {getattr(m, key):g}" for m in field.metadata for key, sign in signs.items() if hasattr(m, key)]
    rules = ["or " * bool(others) + " | ".join(choices)] * bool(choices) + [", ".join(bounds)] * bool(bounds)
    rules += [] if field.is_required() else [f"default {_flow(field.default)}"]
    return f" ({'; '.join(rules)})" if rules else ""


def _flow(value: Any) -> str:
    """One value as YAML on one line."""
    plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=math.inf).removesuffix("\n").removesuffix("\n...")


def _parts(key: str) -> list[str]:
    """A dotted key cut at its dots; a dot does not split the name of a class."""
    for whole in _OWN_NAMES:
        if key.startswith(f"{whole}."):
            return [*whole.split("."), key.removeprefix(f"{whole}.")]
    return key.split(".")


def _config_file(source: str | Path) -> Path:
    path, bundled = expand_home(source), bundled_configs()
    if path.is_file():
        return path
    if str(source) in bundled:
        return bundled[str(source)]
    raise ConfigError(
        f"config file {str(source)!r}: no such file; give a YAML file or one of the bundled "
        f"{', '.join(bundled) or '(none found)'}.{did_you_mean(path.stem, bundled)}"
    )


def _first_problem(error: ValidationError, tree: Any) -> str:
    """The first of pydantic's findings, in one line, with a suggestion where a key is unknown."""
    found = error.errors(include_url=False)
    first = next((item for item in found if item["type"] == "extra_forbidden"), found[0])
    # Pydantic adds the names of union members to the location; keep only what the user wrote.
    shown: list[str] = []
    node = tree
    for part in first["loc"]:
        inside = isinstance(node, dict) and (part in node or first["type"] == "missing")
        if inside or (isinstance(node, list | tuple) and isinstance(part, int) and part < len(node)):
            shown.append(str(part))
            node = node.get(part) if isinstance(node, dict) else node[part]
    key = ".".join(shown)
    if first["type"] == "extra_forbidden":
        known = _known_keys(shown[:-1])
        return f"unknown key {key!r}; must be one of {', '.join(known)}.{did_you_mean(shown[-1], known)}"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] in ("missing", "value_error") else f"; got {node!r}"
    return f"{key or 'configuration'}: {message}{got}. `kbaseline config` lists every key with its meaning."


def _known_keys(path: list[str]) -> list[str]:
    section: Any = Config
    for part in path:
        if not part.isdigit():
            section = {"stages": StageConfig, "tta": TTAConfig}.get(part) or type(Config.model_fields[part].default)
    return list(section.model_fields)
