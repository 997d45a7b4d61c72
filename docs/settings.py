"""config.md from the schema: every key with its meaning, its values, its default and an example."""

import re
from typing import Any

import yaml

from kbaseline.config.keys import flattened
from kbaseline.config.load import load_config, parse_assignments
from kbaseline.config.schema import Config
from kbaseline.errors import ConfigError

EXAMPLES = flattened(
    {
        "name": "birds",
        "seed": 1,
        "data": {"source": "folder:photos/", "data_dir": "data/tfds", "limit": 1000, "limit_valid": 500}
        | {"valid_fraction": 0.1, "image_column": "file", "label_column": "species", "split_column": "fold"}
        | {"class_weights": "auto", "cache_dir": "data/cache"},
        "model": {"backbone": "convnext_tiny", "weights": "none", "bn_momentum": 0.99},
        "transforms": {"max_zoom": 1.3, "p_affine": 0.5, "p_lighting": 0.5, "train_size": 112},
        "optimizer": {"beta_2": 0.999, "epsilon": 1e-7, "momentum": [0.9, 0.8]},
        "lr_find": {"start_lr": 1e-6, "end_lr": 1.0, "steps": 200},
        "stages": {"0": {"name": "warmup", "epochs": 5, "max_lr": "auto", "pct_start": 0.2}},
        "tta": {"beta": 0.5, "scale": 1.1, "flip": False},
        "runtime": {"log": ["tensorboard"]},
    },
    lists=False,
)
"""Values for `--set` where the one that `_example` makes would be odd."""

WORDS = {"integer": "integer", "number": "number", "boolean": "`true` or `false`", "null": "`null`"}

HEAD = """
A configuration is a YAML file given to `--config`. Without one, the defaults are the article's recipe. `--set
KEY=VALUE` changes one key and takes precedence over the file; values are read as YAML. `kbaseline config` prints the
result. `stages.0` is the first stage, `stages.1` the second. For more or fewer stages, list all of them under `stages`
in a file; there, keys marked *required* below have no default.
"""


def config_page(made_by: str) -> str:
    """The page, in the order of the schema.

    Raises:
        ConfigError: an example breaks a rule, or its key does not exist.
    """
    schema, defaults = Config.model_json_schema(), Config().model_dump(mode="json")
    for key, value in EXAMPLES.items():
        load_config(None, parse_assignments([f"{key}={_yaml(value)}"]))
    lines = [f"# Configuration\n\n{made_by}{HEAD}"]
    for name, field in schema["properties"].items():
        section = _section(schema, field)
        if section is None:
            lines.append(_key(name, field, defaults[name]))
            continue
        several = isinstance(defaults[name], list)
        meaning = " ".join(filter(None, [section.get("description"), field.get("description")]))
        lines.append(f"## {name}\n\n{meaning}\n")
        first = defaults[name][0] if several else defaults[name]
        lines += [_key(f"{name}.{'0.' * several}{key}", sub, first[key]) for key, sub in section["properties"].items()]
    return "\n".join(lines)


def _section(schema: dict[str, Any], field: dict[str, Any]) -> dict[str, Any] | None:
    """The group of settings that a field holds: itself, in a list, or as one of two choices."""
    places = [field, field.get("items", {}), *field.get("anyOf", [])]
    names = [place["$ref"].rpartition("/")[2] for place in places if "$ref" in place]
    return schema["$defs"][names[0]] if names else None


def _key(key: str, field: dict[str, Any], now: Any) -> str:
    # Only defaults in the schema hold for every stage; the two default stages differ in the rest.
    default = f"default `{_yaml(field['default'])}`" if "default" in field else "required"
    facts = f"{_values(field)} · {default} · `--set {_example(key, field, now)}`"
    return f"### {key}\n\n{' '.join(field['description'].split())}\n\n{facts}\n"


def _values(field: dict[str, Any]) -> str:
    """The values a field may take, in words."""
    if "anyOf" in field:
        return " or ".join(_values(choice) for choice in field["anyOf"])
    if choices := field.get("enum", [field["const"]] if "const" in field else None):
        return ", ".join(f"`{choice}`" for choice in choices)
    if field["type"] == "array":
        inside = [_values(item) for item in field.get("prefixItems", [])] or [f"{_values(field['items'])}, …"]
        return f"[{'; '.join(inside)}]"
    if field["type"] == "object":
        return "{name: number}"
    if field["type"] == "string":
        return "path" if field.get("format") == "path" else "text" + _pattern(field)
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[bound]:,}" for bound, sign in signs.items() if bound in field]
    return " ".join([WORDS[field["type"]], ", ".join(bounds)]).strip()


def _pattern(field: dict[str, Any]) -> str:
    longest = f", at most {field['maxLength']} characters" if "maxLength" in field else ""
    return longest + (f", matching `{field['pattern']}`" if "pattern" in field else "")


def _example(key: str, field: dict[str, Any], now: Any) -> str:
    """`KEY=VALUE` that the schema accepts, with a value other than `now` where one is known or easily made."""
    candidates = [choice for choice in field.get("enum", []) if choice != now] or [now]
    if key in EXAMPLES:
        candidates = [EXAMPLES[key]]
    elif isinstance(now, bool):
        candidates = [not now]
    elif isinstance(now, int | float):
        candidates = [now * 2, now / 2]
    assignments = [f"{key}={_yaml(value)}" for value in (*candidates, now)]
    assignment = next(item for item in assignments if _is_taken(item))
    return f"'{assignment}'" if re.search(r"[\[{ ]", assignment) else assignment


def _is_taken(assignment: str) -> bool:
    try:
        load_config(None, parse_assignments([assignment]))
    except ConfigError:
        return False
    return True


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
