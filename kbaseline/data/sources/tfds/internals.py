"""What TFDS has no public setting for, one function for each private thing that is used; checked against TFDS 4.9.10.

`tests/data/test_tfds.py` says which of them a new release has changed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


@contextmanager
def progress_bars_hidden() -> Iterator[None]:
    """Switches TFDS's progress bars off, then back to what they were."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import tqdm_utils

    # The switch is public, its state is not: without `_active` a program that has the bars off would get them back,
    # or one that has them on would lose them.
    before = tqdm_utils._active
    tfds.display_progress_bar(False)
    try:
        yield
    finally:
        tfds.display_progress_bar(before)


@contextmanager
def tensorflow_banner_hidden() -> Iterator[None]:
    """Keeps TFDS from printing a banner when it misses TensorFlow; the ImportError is raised all the same."""
    from tensorflow_datasets.core.utils import lazy_imports_utils

    # The banner goes to standard output, where `--json` writes nothing but JSON, and tells people to install
    # TensorFlow where our own error of one line names the extra. A plain setattr would import TensorFlow.
    module = vars(lazy_imports_utils.tensorflow)
    before = module["error_callback"]
    module["error_callback"] = None
    try:
        yield
    finally:
        module["error_callback"] = before


def silence(builder: Any) -> None:
    """Keeps one builder from printing what it is about to download and that it has."""
    # Both print to standard output, where `--json` writes nothing but JSON; neither asks a log level or a setting.
    # Replaced on this object alone, so there is nothing to put back.
    builder._log_download_bytes = builder._log_download_done = lambda: None


@contextmanager
def downloads_replaced(open_url: Callable[..., Any], fetch: Callable[..., Any], retries: int) -> Iterator[None]:
    """Puts our own functions around TFDS's downloads, then its own ones back.

    Args:
        open_url: called as `open_url(genuine, url, **options)`, a context of the response and its blocks of bytes.
        fetch: called as `fetch(genuine, downloader, url, folder, verify)`; downloads one file into a folder of its own.
        retries: how often a request is repeated, in place of ten times.
    """
    from tensorflow_datasets.core.download import downloader

    # `_open_url` sets no timeout, so a dead connection would hang the run for ever; it alone sees the bytes go by.
    # `_sync_download` alone knows URL and folder of a download, and TFDS leaves the folder of a failed one behind.
    before = downloader._open_url, downloader._Downloader._sync_download, downloader.MAX_RETRIES

    def sync_download(self: Any, url: str, destination_path: Any, verify: bool = True) -> Any:
        return fetch(before[1], self, url, destination_path, verify)

    downloader._open_url = partial(open_url, before[0])
    downloader._Downloader._sync_download = sync_download
    downloader.MAX_RETRIES = retries
    try:
        yield
    finally:
        downloader._open_url, downloader._Downloader._sync_download, downloader.MAX_RETRIES = before
