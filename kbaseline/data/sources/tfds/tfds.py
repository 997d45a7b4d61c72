"""The source `tfds:NAME`: an image-classification set of TensorFlow Datasets, prepared and read without TensorFlow."""

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from kbaseline.data.sources.tfds.records import Records, read_labels, remembered, split_records
from kbaseline.errors import DataError, DownloadError, KBaselineError, RunError, did_you_mean


@contextmanager
def open_tfds(name: str, config: DataConfig, console: Console | None = None) -> Iterator[Listing]:
    """Lists the images of a TFDS set, which is downloaded and prepared first where it is not yet.

    CIFAR-10 and CIFAR-100 are prepared without TensorFlow; of the others those whose builders do not call it. A set
    that is prepared already is always read without it. TFDS's `train`, `validation` and `test` become train, valid
    and test; a `test` without labels is left out. TFDS prints nothing until the context ends.

    Args:
        name: `NAME`, `NAME/CONFIG`, `NAME:VERSION` or `NAME/CONFIG:VERSION`.
        config: its `data_dir` holds the set, its `cache_dir` the labels.
        console: where to show progress; None shows nothing.

    Raises:
        DataError: an unknown set, one without images and labels, or one whose builder needs TensorFlow.
        DownloadError: the set is not here and could not be fetched.
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
    """Whether a set is prepared in the data folder; TFDS itself is not asked."""
    folder = config.tfds_folder / name.replace(":", "/")
    if any(folder.glob("**/dataset_info.json")):
        return True, f"tfds:{name} in {folder}"
    return False, f"tfds:{name} is not in {folder}; `kbaseline fit` downloads it"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS: its progress bars, its log and what it prints where TensorFlow is missing."""
    # TFDS takes half a second to import; only those who read one of its sets pay for it, here and below.
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
    """TFDS's builder of a set, from its code or from what is prepared in the data folder."""
    import tensorflow_datasets as tfds

    if ":" in name.split("/")[0] and not re.fullmatch(r"[\w/.\-]+:[\d.*]+", name):
        raise DataError(
            f"tfds:{name}: community sets are not supported; write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:VERSION."
        )
    try:
        return tfds.builder(name, data_dir=str(config.tfds_folder))
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise DataError(
            f"tfds:{name}: TFDS knows no such set; https://www.tensorflow.org/datasets/catalog lists them."
            f"{did_you_mean(re.split('[/:]', name)[0], known)}"
        ) from None
    except Exception as error:
        missing = _missing_module(error)
        # TFDS puts what it was called with before the reason.
        reason = re.sub(r'^Failed to construct dataset .*?}": | Here are .*$', "", _first_line(error))
        raise (_needs(name, missing) if missing else DataError(f"tfds:{name}: {reason}")) from error


def _keys(name: str, info: Any) -> tuple[str, str]:
    """Names of the features that hold the image and the label.

    Raises:
        DataError: the set has no images with one class each.
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
                raise DataError(f"tfds:{name}: its images are float, not 0-255; choose a set of ordinary pictures.")
            return image, label
    shown = ", ".join(f"{key} ({type(value).__name__})" for key, value in features.items())
    raise DataError(f"tfds:{name}: must have one image and one class label an example; it has {shown}.")


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
            # Another process may have prepared the same set in the meantime; then all is well.
            if not builder.is_prepared():
                raise _explained(name, root, error, downloads) from error


def _hide_gpus_from_tensorflow() -> None:
    """TensorFlow, where a builder uses it, would take the memory of all GPUs from JAX."""
    if importlib.util.find_spec("tensorflow") is None:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with suppress(ImportError, RuntimeError):
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")


def _explained(name: str, root: Path, error: Exception, downloads: Downloads) -> KBaselineError:
    """TFDS's failure as one line with its remedy."""
    if downloads.failure is not None or type(error).__name__ in ("DownloadError", "NonMatchingChecksumError"):
        url, reason = downloads.failure or ("its files", _first_line(error))
        return DownloadError(
            f"tfds:{name}: could not fetch {url} ({reason}) and {str(root)!r} holds no prepared copy; go online, set "
            "data.data_dir=DIR where one is, take data.source=folder:PATH, or run `kbaseline fit --config quickstart`, "
            "which needs no network."
        )
    missing = _missing_module(error)
    if missing:
        return _needs(name, missing)
    if "manual" in str(error).lower() and isinstance(error, AssertionError):
        return DataError(f"tfds:{name}: must be fetched by hand first; {_first_line(error)}")
    return RunError(f"tfds:{name}: TFDS could not prepare it in {str(root)!r} ({_first_line(error)}).")


def _missing_module(error: BaseException | None) -> str:
    """The module whose absence made TFDS fail, or an empty string."""
    while error is not None:
        found = re.search(r"No module named '([\w.]+)'", str(error)) if isinstance(error, ImportError) else None
        if found:
            return found.group(1).split(".")[0]
        error = error.__cause__ or error.__context__
    return ""


def _needs(name: str, module: str) -> DataError:
    remedy = "pip install 'kbaseline[tensorflow]'" if module.startswith("tensorflow") else f"pip install {module}"
    return DataError(f"tfds:{name}: TFDS needs the module {module} to prepare this set; run `{remedy}` and try again.")


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
    state = (Path(builder.data_dir) / "dataset_info.json").stat()
    stamp = f"{builder.data_dir}\0{state.st_size}\0{state.st_mtime_ns}"
    records, labels = {}, {}
    for split in SPLITS:
        theirs = [alias for alias, meant in ALIASES.items() if meant == split]
        found = next((their for their in theirs if their in available and available[their].num_examples), None)
        if found is None:
            continue
        parts = split_records(builder, found)
        labels[split] = _labels(parts, label_key, f"{stamp}\0{found}\0{label_key}", config, console)
        records[found] = parts
        if split != "train" and (labels[split] < 0).all():
            del labels[split], records[found]  # Kept secret for a competition.
    for split, values in labels.items():
        if (values < 0).any():
            raise DataError(f"{source}: every image must have a label; {split} has {(values < 0).sum():,} without.")
    feature = builder.info.features[label_key]
    names = tuple(feature.names or map(str, range(feature.num_classes)))
    return Listing(Records(source, records, image_key, stamp), labels, names, source)


def _labels(records: Any, key: str, stamp: str, config: DataConfig, console: Console | None) -> np.ndarray:
    with Bar(console, "Reading labels", len(records)) as bar:
        return remembered(config.cache_folder / "labels", stamp, lambda: read_labels(records, key, bar))
