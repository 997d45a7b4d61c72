"""Writes what of the docs is generated: cli.md from click, config.md from the schema, house.svg from the imports.

python docs/reference.py            # into docs/; a test says when it is time
python docs/reference.py FOLDER     # elsewhere
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml
from house import draw_house

from kbaseline.cli import main
from kbaseline.config import Config, load_config, parse_assignments
from kbaseline.errors import ConfigError

HEAD = "Made by `python docs/reference.py`; change the code, not this page.\n"

EXAMPLES = {
    "name": "birds",
    "seed": 1,
    "data.source": "folder:photos/",
    "data.data_dir": "data/tfds",
    "data.limit": 1000,
    "data.limit_valid": 500,
    "data.valid_fraction": 0.1,
    "data.image_column": "file",
    "data.label_column": "species",
    "data.split_column": "fold",
    "data.class_weights": "auto",
    "data.cache_dir": "data/cache",
    "model.backbone": "convnext_tiny",
    "model.weights": "none",
    "model.bn_momentum": 0.99,
    "transforms.max_zoom": 1.3,
    "transforms.p_affine": 0.5,
    "transforms.p_lighting": 0.5,
    "optimizer.beta_2": 0.999,
    "optimizer.epsilon": 1.0e-7,
    "optimizer.momentum": [0.9, 0.8],
    "lr_find.start_lr": 1.0e-6,
    "lr_find.end_lr": 1.0,
    "lr_find.steps": 200,
    "stages.0.name": "warmup",
    "stages.0.epochs": 5,
    "stages.0.max_lr": "auto",
    "tta.scale": 1.1,
    "tta.flip": False,
    "runtime.log": ["tensorboard"],
}
"""Values shown in `--set`, where the rule of `example` would give a silly one."""

WORDS = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "null": "`null`"}


def cli_page() -> str:
    """Every command with its usage, its help and its options."""
    pages = [
        f"# The command line\n\n{HEAD}\n"
        "`--help` after any command prints what stands here. Exit codes: 0 done, 2 what was asked cannot be done, 1 it "
        "failed on the way, 130 or 143 it was stopped by a signal. An error is one line.\n"
    ]
    root = click.Context(main, info_name="kbaseline")
    return "\n".join([*pages, *(_command(context) for context in _contexts(root))])


def _contexts(context: click.Context) -> Iterator[click.Context]:
    """A command's own context, then those of its subcommands."""
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            inner = context.command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _contexts(click.Context(inner, info_name=name, parent=context))


def _command(context: click.Context) -> str:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    records = [option.get_help_record(context) for option in command.params if isinstance(option, click.Option)]
    # A bar would end the cell of a table, and what stands in angle brackets would be read as HTML.
    rows = [(flags.replace("|", "\\|"), meaning.replace("<", "\\<")) for flags, meaning in filter(None, records)]
    table = "\n".join(f"| `{flags}` | {meaning} |" for flags, meaning in rows)
    options = f"\n| option | meaning |\n|---|---|\n{table}\n" if rows else ""
    text = inspect.cleandoc(command.help or "")
    return f"## {context.command_path}\n\n```text\n{usage}\n```\n\n{text}\n{options}"


def config_page() -> str:
    """Every key with its meaning, its values, its default and an example, in the order of the schema."""
    schema = Config.model_json_schema()
    defaults, lines = Config().model_dump(mode="json"), [f"# Configuration\n\n{HEAD}"]
    lines.append(
        "A configuration is a YAML file for `--config`, or nothing at all: the defaults are the article's recipe. "
        "`--set KEY=VALUE` changes one key and stands above the file; values are read as YAML. `kbaseline config` "
        "prints the result of both. `stages.0` is the first stage, `stages.1` the second.\n"
    )
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
    """The group of settings that a field is, or a list's item is, or one of two choices is."""
    places = [field, field.get("items", {}), *field.get("anyOf", [])]
    names = [place["$ref"].rpartition("/")[2] for place in places if "$ref" in place]
    return schema["$defs"][names[0]] if names else None


def _key(key: str, field: dict[str, Any], now: Any) -> str:
    # A default that stands in the schema holds anywhere; what a stage must say differs from stage to stage.
    default = f"default `{_yaml(field['default'])}`" if "default" in field else "must be given"
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
    """`KEY=VALUE` that the schema takes, with another value than `now` where one is known or easily made."""
    if key in EXAMPLES:
        candidates = [EXAMPLES[key]]
    elif isinstance(now, bool):
        candidates = [not now]
    elif isinstance(now, int | float):
        candidates = [now * 2, now / 2]
    else:
        candidates = [choice for choice in field.get("enum", []) if choice != now] or [now]
    assignment = next(item for value in candidates if _is_taken(item := f"{key}={_yaml(value)}"))
    return f"'{assignment}'" if re.search(r"[\[{ ]", assignment) else assignment


def _is_taken(assignment: str) -> bool:
    try:
        load_config(None, parse_assignments([assignment]))
    except ConfigError:
        return False
    return True


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent
    for file, text in (("cli.md", cli_page()), ("config.md", config_page()), ("house.svg", draw_house())):
        (folder / file).write_text(text, encoding="utf-8")
