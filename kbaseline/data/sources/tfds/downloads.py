"""Downloads of TFDS with timeouts and a progress bar; nothing is left of one that fails."""

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
    """The downloads made under `guarded_downloads`.

    Attributes:
        failure: URL and reason of the first that failed, or None.
    """

    def __init__(self, bar: Bar) -> None:
        self.failure: tuple[str, str] | None = None
        self._bar = bar
        self._reached: set[str] = set()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends running downloads: Python waits for their threads before it exits."""
        self._stopped.set()

    def fetch(self, genuine: Callable[..., Any], downloader: Any, url: str, folder: Any, verify: bool) -> Any:
        """Downloads a file with TFDS's own function; removes what is left of a failed one and notes the reason."""
        try:
            self._reach(url, verify)
            return genuine(downloader, url, folder, verify)
        except BaseException as error:
            self.failure = self.failure or (url, _reason(error))
            shutil.rmtree(folder, ignore_errors=True)
            raise

    @contextmanager
    def open(self, genuine: Callable[..., Any], url: str, **options: Any) -> Iterator[tuple[Any, Iterable[bytes]]]:
        """Opens a URL with TFDS's own function, under timeouts; gives the response and its bytes, which are counted."""
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
        """Asks each host once, without the retries by which TFDS would spend minutes on a dead network."""
        host = urlsplit(url).netloc
        if url.startswith("http") and host not in self._reached:
            # Late: only those who download need it. TFDS uses it too, so proxies and certificates agree.
            import requests

            requests.get(url, stream=True, timeout=(CONNECT_SECONDS, ANSWER_SECONDS), verify=verify).close()
            self._reached.add(host)


@contextmanager
def guarded_downloads(console: Console | None) -> Iterator[Downloads]:
    """Puts timeouts, few retries and a progress bar under what TFDS downloads inside the block."""
    patience = socket.getdefaulttimeout()
    with Bar(console, "Downloading", unit="bytes") as bar:
        downloads = Downloads(bar)
        socket.setdefaulttimeout(READ_SECONDS)  # For ftp, which goes through urllib.
        try:
            with downloads_replaced(downloads.open, downloads.fetch, RETRIES):
                yield downloads
        finally:
            downloads.stop()
            socket.setdefaulttimeout(patience)


def _reason(error: BaseException) -> str:
    """The innermost reason, without the Python objects that requests puts before it."""
    inner = error.args[0] if error.args else error
    text = " ".join(str(getattr(inner, "reason", inner)).split())
    return re.sub(r"^<?\w+(\.\w+)*(\([^()]*\)| object at \w+)>?: ", "", text) or type(error).__name__
