"""Reads a source string (`tfds:NAME`, `folder:PATH`, `csv:PATH`, `digits`) into `ImageData`."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kbaseline.config.schema import DataConfig
from kbaseline.data.image_data import ImageData
from kbaseline.data.labelled import Labelled, chosen_split, matched, prepare_labelled
from kbaseline.data.sources.csv import list_csv, load_csv
from kbaseline.data.sources.csv_table import TABLES
from kbaseline.data.sources.digits import all_digits, load_digits
from kbaseline.data.sources.folder import list_folder, load_folder
from kbaseline.errors import DataError, did_you_mean

_FORMS = "tfds:NAME, folder:PATH, csv:PATH or digits"
_EXAMPLES = ("tfds:cifar10", "tfds:cifar100", "tfds:mnist", "folder:PATH", "csv:PATH", "digits")


def load_source(config: DataConfig, seed: int, console: Console | None = None) -> ImageData:
    """Loads the images a configuration asks for: its source, validation split, subset and size.

    Args:
        config: the `data` section.
        seed: fixes random splits and subsets.
        console: where work of more than two seconds shows its progress; None shows nothing.

    Returns:
        Images uint8 0-255, `(number, height, width, 3)`, in memory or memory-mapped.

    Raises:
        DataError: an unknown source, or data that breaks a rule.
        DownloadError: the images are not here and could not be fetched.
        RunError: a folder cannot be written, or TFDS fails.
    """
    match config.source.partition(":"):
        case "folder", ":", path:
            return load_folder(path, config, seed, console)
        case "csv", ":", path:
            return load_csv(path, config, seed, console)
        case "tfds", ":", name:
            # TFDS takes half a second to import; only those who use it pay.
            from kbaseline.data.sources.tfds.tfds import load_tfds

            return load_tfds(name, config, seed, console)
        case "digits", "", "":
            return load_digits(config, seed)
    raise DataError(_unknown(config.source))


def load_labelled(
    config: DataConfig, class_names: Sequence[str], split: str | None = None, console: Console | None = None
) -> Labelled:
    """Loads images to score a trained network on: nothing is held out and nothing left out, whatever `config` says.

    Args:
        config: its `source`, and how photos are read: `size`, `resize`, `on_bad_image`, `data_dir`, `cache_dir`.
        class_names: the network's classes; the source's are matched to them by name, in any order.
        split: `train`, `valid`, `test` or `all`; None for test, else valid, else all: a plain folder of class folders
            is one set.
        console: where work of more than two seconds shows its progress; None shows nothing.

    Raises:
        DataError: an unknown source or split, data that breaks a rule, or a class that is not the network's.
        DownloadError, RunError: as `load_source`.
    """
    match config.source.partition(":"):
        case "folder", ":", path:
            return prepare_labelled(list_folder(path), class_names, split, config, console)
        case "csv", ":", path:
            return prepare_labelled(list_csv(path, config, console), class_names, split, config, console)
        case "tfds", ":", name:
            from kbaseline.data.sources.tfds.tfds import listed_tfds

            with listed_tfds(name, config, console) as listing:
                return prepare_labelled(listing, class_names, split, config, console)
        case "digits", "", "":
            everything, names = all_digits()
            chosen = chosen_split({"train": everything.labels}, split, "digits")
            return Labelled(everything.images, matched(everything.labels, names, class_names, "digits"), chosen)
    raise DataError(_unknown(config.source))


def source_status(config: DataConfig) -> tuple[bool, str]:
    """Whether the images of a source are on this machine, and where they are or what to do; downloads nothing."""
    match config.source.partition(":"):
        case "folder", ":", name:
            path = Path(name).expanduser()
            return path.is_dir(), str(path) if path.is_dir() else f"no folder {path}"
        case "csv", ":", name:
            path = Path(name).expanduser()
            return path.is_file(), str(path) if path.is_file() else f"no file {path}"
        case "tfds", ":", name:
            folder = config.tfds_folder / name.replace(":", "/")
            if any(folder.glob("**/dataset_info.json")):
                return True, f"{config.source} in {folder}"
            return False, f"{config.source} is not in {folder}; `kbaseline fit` downloads it"
        case "digits", "", "":
            return True, "digits comes with scikit-learn"
    return False, f"no source {config.source!r}; give {_FORMS}"


def _unknown(source: str) -> str:
    try:
        path = Path(source).expanduser()
        is_folder, is_table = bool(source) and path.is_dir(), path.is_file() and path.suffix.lower() in TABLES
    except (OSError, RuntimeError):
        is_folder = is_table = False
    if is_folder or is_table:
        thing, prefix = ("a folder", "folder") if is_folder else ("a table", "csv")
        return f"data.source {source!r}: is {thing}, and {thing} needs its prefix; write {prefix}:{source}"
    kind, colon, rest = source.partition(":")
    if rest.startswith("//"):  # A web address.
        guess = ""
    elif colon:  # Only the prefix is corrected.
        guess = did_you_mean(kind + colon, ("tfds:", "folder:", "csv:")).replace(":'", f":{repr(rest)[1:-1]}'")
    else:
        guess = did_you_mean(source, _EXAMPLES)
    return f"data.source {source!r}: must be {_FORMS}.{guess}"
