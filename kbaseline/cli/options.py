"""Options shared by several commands, and the configuration they select."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from kbaseline.errors import InputError, one_line

assignments = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change one key; repeatable."
)
_data = click.option("--data", "source", metavar="SOURCE", help="Short for --set data.source=SOURCE.")
_config = click.option(
    "--config",
    metavar="FILE",
    help="A YAML file, or a bundled one such as `quickstart`. Default: the article's recipe.",
)


def settings(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that select a configuration."""
    return _config(_data(assignments(command)))


def settings_without_source(command: Callable[..., None]) -> Callable[..., None]:
    """`settings` without `--data`, for a command whose argument is the source."""
    return _config(assignments(command))


out = click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Run folder. Default: runs/<name>, numbered."
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


def resolve(
    config: str | None, source: str | None, assignments: tuple[str, ...], further: Mapping[str, Any] | None = None
) -> Any:
    """The configuration selected by the options, with `further` changes. Raises `ConfigError` as `load_config` does."""
    from kbaseline.config.load import load_config, parse_assignments

    changes = {**({"data.source": source} if source else {}), **parse_assignments(assignments), **(further or {})}
    return load_config(config, changes)


def start_keras() -> None:
    """Imports Keras on JAX, with the precision and channel order of a run: this process is ours, whatever the user set.

    Raises:
        InputError: `KERAS_BACKEND` is set to another backend, or `keras.json` stops Keras.
    """
    if (backend := os.environ.get("KERAS_BACKEND", "jax")) != "jax":
        raise InputError(f"KERAS_BACKEND is {backend!r}: kbaseline runs on 'jax'; unset it or set it to jax.")
    from kbaseline.models.zoo import keras_home

    try:
        import keras
    except (ValueError, AttributeError, OSError) as error:
        if not (file := keras_home() / "keras.json").exists():
            raise
        raise InputError(f"{file}: Keras cannot start with it ({one_line(error)}); correct or delete it.") from None
    import jax

    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    jax.config.update("jax_enable_x64", False)
