"""TFDS downloads with timeouts and a progress bar; a failed download leaves no files."""

import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from kbaseline.console.bars import Bar
from kbaseline.data.sources.tfds.internals import downloads_replaced

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
READ_SECONDS = 30.0
RETRIES = 2


class Downloads:
    """The downloads made inside `guarded_downloads`.

    Attributes:
        failure: URL and reason of the first failed download, or None.
    """

    def __init__(self, bar: Bar) -> None:
        self.failure: tuple[str, str] | None = None
        self._bar = bar
        self._reached: set[str] = set()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Stops running downloads, because Python waits for their threads before it exits."""
        self._stopped.set()

    def fetch(self, genuine: Callable[..., Any], downloader: Any, url: str, folder: Any, verify: bool) -> Any:
        """Downloads a file with TFDS's own function; after a failure removes partial files and records the reason."""
        try:
            self._reach(url, verify)
            return genuine(downloader, url, folder, verify)
        except BaseException as error:
            self.failure = self.failure or (url, _reason(error))
            shutil.rmtree(folder, ignore_errors=True)
            raise

    @contextmanager
    def open(self, genuine: Callable[..., Any], url: str, **options: Any) -> Iterator[tuple[Any, Iterable[bytes]]]:
        """Opens a URL with TFDS's own function and timeouts; yields the response and its blocks, counted by the bar."""
        if url.startswith("http"):
            options["timeout"] = (CONNECT_SECONDS, READ_SECONDS)
        with genuine(url, **options) as (response, blocks):
            self._bar.grow(int(response.headers.get("Content-Length") or 0))
            yield response, self._counted(blocks)

    def _counted(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        for block in blocks:
            if self._stopped.is_set():
                raise ConnectionAbortedError("stopped")
            self._bar.advance(len(block))
            yield block

    def _reach(self, url: str, verify: bool) -> None:
        """Contacts each host once, without retries; TFDS's retries take minutes if there is no network."""
        host = urlsplit(url).netloc
        if url.startswith("http") and host not in self._reached:
            # Imported here because only downloads need it. TFDS uses it too, so proxies and certificates agree.
            import requests

            requests.get(url, stream=True, timeout=(CONNECT_SECONDS, ANSWER_SECONDS), verify=verify).close()
            self._reached.add(host)


@contextmanager
def guarded_downloads(console: Console | None) -> Iterator[Downloads]:
    """Inside the block, TFDS downloads have timeouts, few retries and a progress bar."""
    timeout = socket.getdefaulttimeout()
    with Bar(console, "Downloading", unit="bytes") as bar:
        downloads = Downloads(bar)
        socket.setdefaulttimeout(READ_SECONDS)  # for FTP, which uses urllib
        try:
            with downloads_replaced(downloads.open, downloads.fetch, RETRIES):
                yield downloads
        finally:
            downloads.stop()
            socket.setdefaulttimeout(timeout)


def _reason(error: BaseException) -> str:
    """The innermost reason, without the object names that requests puts before it."""
    inner = error.args[0] if error.args else error
    text = " ".join(str(getattr(inner, "reason", inner)).split())
    return re.sub(r"^<?\w+(\.\w+)*(\([^()]*\)| object at \w+)>?: ", "", text) or type(error).__name__
