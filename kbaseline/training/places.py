"""Where a run finds what lies outside its folder, by absolute paths; what of it may change when the run is resumed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kbaseline.config.keys import flattened
from kbaseline.config.paths import expand_home
from kbaseline.config.schema import Config
from kbaseline.data.sources.registry import absolute_source
from kbaseline.errors import InputError
from kbaseline.models.zoo import ZOO

PROCESS_KEYS = ("coordinator", "num_processes", "process_id")
"""Keys of `runtime` that differ between the processes of one run."""

MOVABLE_KEYS = (
    *("runtime.devices", *(f"runtime.{name}" for name in PROCESS_KEYS)),
    *("data.source", "data.data_dir", "data.cache_dir"),
)
"""Keys that may change when a run is resumed: where it computes, and where its images lie."""


def check_movable(keys: Iterable[str]) -> None:
    """Raises an `InputError` for a key that may not change when a run is resumed."""
    if others := [key for key in keys if key not in MOVABLE_KEYS]:
        raise InputError(f"resume: the run folder holds {others[0]}; only {', '.join(MOVABLE_KEYS)} may change.")


def with_absolute_paths(config: Config) -> Config:
    """The configuration with every relative path in it resolved against the current directory."""
    data, model = config.data, config.model
    folders = {name: _absolute(path) for name in ("data_dir", "cache_dir") if (path := getattr(data, name)) is not None}
    named = {"auto", "none", *ZOO, *(row.pretrained for row in ZOO.values())}
    given = {"backbone": model.backbone, "weights": model.weights}
    # What is neither a known name nor a file is refused later, as it was typed.
    files = {
        key: str(path)
        for key, value in given.items()
        if value not in named and (path := _absolute(Path(value))).is_file()
    }
    return config.model_copy(
        update={
            "data": data.model_copy(update={"source": absolute_source(data.source), **folders}),
            "model": model.model_copy(update=files),
        }
    )


def difference(then: Config, now: Config) -> str:
    """The first setting, movable ones aside, in which two configurations differ, in words; an empty string if none."""
    before, after = _fixed(then), _fixed(now)
    for key in {**before, **after}:
        if before.get(key) != after.get(key):
            return f"{key} was {before.get(key)!r}, is {after.get(key)!r}"
    return ""


def _fixed(config: Config) -> dict[str, Any]:
    values = flattened(with_absolute_paths(config).model_dump(mode="json"))
    if config.tta is not None:
        # The source decides what `auto` means.
        values["tta.flip"] = config.tta.mirrors(config.data.source)
    return {key: value for key, value in values.items() if key not in MOVABLE_KEYS}


def _absolute(path: Path) -> Path:
    """Links are not followed: a file's name tells its format, and what a link points to may have another."""
    return expand_home(path).absolute()
