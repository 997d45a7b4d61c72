"""The source `tfds:NAME`: an image-classification dataset of TFDS, prepared and read without TensorFlow."""

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kbaseline.config.schema import DataConfig
from kbaseline.config.splits import ALIASES, SPLITS
from kbaseline.console.bars import Bar
from kbaseline.data.sources.listing import Listing
from kbaseline.data.sources.tfds import cifar
from kbaseline.data.sources.tfds.downloads import Downloads, guarded_downloads
from kbaseline.data.sources.tfds.internals import progress_bars_hidden, silence, tensorflow_banner_hidden
from kbaseline.data.sources.tfds.records import Records, files_stamp, read_labels, remembered, split_records
from kbaseline.errors import DataError, DownloadError, KBaselineError, RunError, did_you_mean


@contextmanager
def open_tfds(name: str, config: DataConfig, console: Console | None = None) -> Iterator[Listing]:
    """Lists the images of a TFDS dataset, which is downloaded and prepared first if necessary.

    CIFAR-10, CIFAR-100 and every dataset whose builder does not call TensorFlow are prepared without it. A prepared
    dataset is always read without it. TFDS's `train`, `validation` and `test` become train, valid and test; a `test`
    without labels is ignored. TFDS prints nothing until the context ends.

    Args:
        name: `NAME`, `NAME/CONFIG`, `NAME:VERSION` or `NAME/CONFIG:VERSION`.
        config: `data_dir` is the folder for the dataset, `cache_dir` the folder for the labels.
        console: where to show progress; None shows nothing.

    Raises:
        DataError: the dataset is unknown, has no images with labels, or has a builder that needs TensorFlow.
        DownloadError: the dataset is not on this machine and could not be downloaded.
        RunError: TFDS fails, or a folder cannot be written.
    """
    with _quiet():
        builder = _builder(name, config)
        image_key, label_key = _keys(name, builder.info)
        if not builder.is_prepared():
            _download_and_prepare(name, builder, console)
            builder = _builder(name, config)
        yield _listing(name, builder, image_key, label_key, config, console)


def tfds_status(name: str, config: DataConfig) -> tuple[bool, str]:
    """Whether a dataset is prepared in the data folder, and one line on it; does not import TFDS."""
    folder = config.tfds_folder / name.replace(":", "/")
    if any(folder.glob("**/dataset_info.json")):
        return True, f"tfds:{name} in {folder}"
    return False, f"tfds:{name} is not in {folder}; `kbaseline fit` downloads it"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS: progress bars, log, and the banner about missing TensorFlow."""
    # Importing TFDS takes half a second, so it is imported inside functions, here and below.
    try:
        import tensorflow_datasets  # noqa: F401
        from absl import logging
    except ImportError as error:
        raise DataError(f"data.source 'tfds:': needs tensorflow-datasets ({error}); reinstall kbaseline.") from None
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        with progress_bars_hidden(), tensorflow_banner_hidden():
            yield
    finally:
        logging.set_verbosity(before)


def _builder(name: str, config: DataConfig) -> Any:
    """TFDS's builder of a dataset, from its code or from the prepared files in the data folder."""
    import tensorflow_datasets as tfds

    if ":" in name.split("/")[0] and not re.fullmatch(r"[\w/.\-]+:[\d.*]+", name):
        raise DataError(
            f"tfds:{name}: community datasets are not supported; use tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:VERSION."
        )
    try:
        return tfds.builder(name, data_dir=str(config.tfds_folder))
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise DataError(
            f"tfds:{name}: TFDS has no such dataset; https://www.tensorflow.org/datasets/catalog lists all."
            f"{did_you_mean(re.split('[/:]', name)[0], known)}"
        ) from None
    except Exception as error:
        missing = _missing_module(error)
        # TFDS puts the call's arguments before the reason.
        reason = re.sub(r'^Failed to construct dataset .*?}": | Here are .*$', "", _first_line(error))
        raise (_needs(name, missing) if missing else DataError(f"tfds:{name}: {reason}")) from error


def _keys(name: str, info: Any) -> tuple[str, str]:
    """Names of the features that hold the image and the label.

    Raises:
        DataError: the dataset does not have one image and one class label per example.
    """
    import tensorflow_datasets as tfds

    features = info.features
    for image, label in (*([info.supervised_keys] if len(info.supervised_keys or ()) == 2 else []), ("image", "label")):
        found = isinstance(image, str) and isinstance(label, str) and image in features and label in features
        if (
            found
            and isinstance(features[image], tfds.features.Image)
            and isinstance(features[label], tfds.features.ClassLabel)
        ):
            if features[image].np_dtype == np.float32:
                raise DataError(f"tfds:{name}: its images are float, not 0-255; use a dataset with 8-bit images.")
            return image, label
    shown = ", ".join(f"{key} ({type(value).__name__})" for key, value in features.items())
    raise DataError(f"tfds:{name}: must have one image and one class label per example; it has {shown}.")


def _download_and_prepare(name: str, builder: Any, console: Console | None) -> None:
    import tensorflow_datasets as tfds

    root = Path(builder.data_dir_root)
    if console is not None:
        console.print(f"Preparing {builder.info.full_name} in {root}", highlight=False)
    if builder.name in cifar.NAMES:
        builder = cifar.cifar_builder(builder.name, console, data_dir=str(root), version=str(builder.version))
    else:
        _hide_gpus_from_tensorflow()
    silence(builder)
    with guarded_downloads(console) as downloads:
        try:
            builder.download_and_prepare(
                file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
        except KBaselineError:
            raise
        except Exception as error:
            # Not an error if another process has prepared the same dataset in the meantime.
            if not builder.is_prepared():
                raise _explained(name, root, error, downloads) from error


def _hide_gpus_from_tensorflow() -> None:
    """Keeps TensorFlow, if a builder uses it, from reserving the memory of all GPUs."""
    if importlib.util.find_spec("tensorflow") is None:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with suppress(ImportError, RuntimeError):
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")


def _explained(name: str, root: Path, error: Exception, downloads: Downloads) -> KBaselineError:
    """Turns a failure of TFDS into an error of one line with the remedy."""
    if downloads.failure is not None or type(error).__name__ in ("DownloadError", "NonMatchingChecksumError"):
        url, reason = downloads.failure or ("its files", _first_line(error))
        return DownloadError(
            f"tfds:{name}: could not download {url} ({reason}), and {str(root)!r} has no prepared copy; check the "
            "network, set data.data_dir=DIR where DIR holds a copy, use data.source=folder:PATH, or run "
            "`kbaseline fit --config quickstart`, which needs no network."
        )
    missing = _missing_module(error)
    if missing:
        return _needs(name, missing)
    if "manual" in str(error).lower() and isinstance(error, AssertionError):
        return DataError(f"tfds:{name}: must be downloaded by hand first; {_first_line(error)}")
    return RunError(f"tfds:{name}: TFDS could not prepare it in {str(root)!r} ({_first_line(error)}).")


def _missing_module(error: BaseException | None) -> str:
    """The missing module that made TFDS fail, or an empty string."""
    while error is not None:
        found = re.search(r"No module named '([\w.]+)'", str(error)) if isinstance(error, ImportError) else None
        if found:
            return found.group(1).split(".")[0]
        error = error.__cause__ or error.__context__
    return ""


def _needs(name: str, module: str) -> DataError:
    remedy = "pip install 'kbaseline[tensorflow]'" if module.startswith("tensorflow") else f"pip install {module}"
    return DataError(
        f"tfds:{name}: TFDS needs the module {module} to prepare this dataset; run `{remedy}` and try again."
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _listing(
    name: str, builder: Any, image_key: str, label_key: str, config: DataConfig, console: Console | None
) -> Listing:
    source = f"tfds:{name}"
    available = builder.info.splits
    if "train" not in available:
        raise DataError(f"{source}: must have a split called train; it has {', '.join(available) or 'none'}.")
    stamp = files_stamp(Path(builder.data_dir))
    records, labels = {}, {}
    for split in SPLITS:
        theirs = [alias for alias, meant in ALIASES.items() if meant == split]
        found = next((their for their in theirs if their in available and available[their].num_examples), None)
        if found is None:
            continue
        parts = split_records(builder, found)
        with Bar(console, "Reading labels", len(parts)) as bar:
            read = partial(read_labels, parts, label_key, f"{source} {found}", bar)
            labels[split] = remembered(config.cache_folder / "labels", f"{stamp}\0{found}\0{label_key}", read)
        records[found] = parts
        if split != "train" and (labels[split] < 0).all():
            del labels[split], records[found]  # withheld labels, as in a competition
    for split, values in labels.items():
        if (values < 0).any():
            raise DataError(f"{source}: every image must have a label; {split} has {(values < 0).sum():,} without one.")
    feature = builder.info.features[label_key]
    names = tuple(feature.names or map(str, range(feature.num_classes)))
    return Listing(Records(source, records, image_key, stamp), labels, names, source)
