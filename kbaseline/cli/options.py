"""Options shared by several commands, and the configuration they select."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def _left_out(*libraries: str) -> Iterator[None]:
    """Keras imports these if it finds them, for parts of it that no command uses; that is half of its own import.

    Later imports find them again, and those that were imported before stay.
    """
    hidden = [name for name in libraries if name not in sys.modules]
    # `import` raises ModuleNotFoundError for None: https://docs.python.org/3/reference/import.html#the-module-cache.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def start_keras() -> None:
    """Imports Keras on JAX, with the precision and channel order of a run: this process is ours, whatever the user set.

    Raises:
        InputError: `KERAS_BACKEND` is set to another backend, or `keras.json` stops Keras.
    """
    if (backend := os.environ.get("KERAS_BACKEND", "jax")) != "jax":
        raise InputError(f"KERAS_BACKEND is {backend!r}: kbaseline runs on 'jax'; unset it or set it to jax.")
    from kbaseline.models.zoo import keras_home

    try:
        with _left_out("matplotlib", "pandas", "sklearn"):
            import keras
    except (ValueError, AttributeError, OSError) as error:
        if not (file := keras_home() / "keras.json").exists():
            raise
        raise InputError(f"{file}: Keras cannot start with it ({one_line(error)}); correct or delete it.") from None
    import jax

    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    jax.config.update("jax_enable_x64", False)
