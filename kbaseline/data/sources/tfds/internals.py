"""Access to TFDS's private API, one function for each use; checked with TFDS 4.9.10.

`tests/data/test_tfds.py` fails by name for each one that a new release changes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


@contextmanager
def progress_bars_hidden() -> Iterator[None]:
    """Turns TFDS's progress bars off, then restores their state."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import tqdm_utils

    # The setter is public, the state is not. Without `_active` the state of the calling program could not be restored.
    before = tqdm_utils._active
    tfds.display_progress_bar(False)
    try:
        yield
    finally:
        tfds.display_progress_bar(before)


@contextmanager
def tensorflow_banner_hidden() -> Iterator[None]:
    """Stops TFDS from printing a banner when TensorFlow is missing; the ImportError is still raised."""
    from tensorflow_datasets.core.utils import lazy_imports_utils

    # The banner goes to standard output, which must contain only JSON with `--json`, and it advises installing
    # TensorFlow; our own error names the extra instead. A plain setattr would import TensorFlow.
    module = vars(lazy_imports_utils.tensorflow)
    before = module["error_callback"]
    module["error_callback"] = None
    try:
        yield
    finally:
        module["error_callback"] = before


def silence(builder: Any) -> None:
    """Stops one builder from printing messages before and after a download."""
    # Both functions print to standard output, which must contain only JSON with `--json`; neither depends on a log
    # level or a setting. They are replaced on this object only, so nothing has to be restored.
    builder._log_download_bytes = builder._log_download_done = lambda: None


@contextmanager
def downloads_replaced(open_url: Callable[..., Any], fetch: Callable[..., Any], retries: int) -> Iterator[None]:
    """Wraps TFDS's download functions, then restores them.

    Args:
        open_url: context manager, called as `open_url(genuine, url, **options)`; yields the response and its blocks.
        fetch: called as `fetch(genuine, downloader, url, folder, verify)`; downloads one file into a folder of its own.
        retries: number of retries of a request; TFDS has ten.
    """
    from tensorflow_datasets.core.download import downloader

    # `_open_url` sets no timeout, so a dead connection would hang the run; only there can the bytes be counted.
    # Only `_sync_download` has both URL and folder of a download; TFDS does not remove the folder after a failure.
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
