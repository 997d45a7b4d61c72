"""Serves a finished run over HTTP until Ctrl-C: a page on which one drops a picture, and a JSON endpoint beside it."""

import ipaddress
import logging
import os
import socket
import webbrowser
from contextlib import suppress
from pathlib import Path

import uvicorn
from rich.console import Console
from starlette.applications import Starlette

from kbaseline.errors import InputError, one_line
from kbaseline.runs.run import load
from kbaseline.serve.app import application
from kbaseline.serve.predictor import Predictor

_MAX_CONNECTIONS = 64
"""Connections at once; with the limit of a picture's size this bounds the memory that uploads take."""

_SHUTDOWN_SECONDS = 3
"""Seconds that Ctrl-C leaves to the requests under way."""


def serve_run(
    folder: Path, host: str, port: int, max_mb: float, console: Console, *, open_browser: bool = False
) -> None:
    """Serves a run until Ctrl-C.

    Args:
        folder: of a finished run.
        host: name or address to listen on.
        port: likewise; 0 takes a free one.
        max_mb: the most a request may hold, in millions of bytes.
        console: where to say that the server is ready.
        open_browser: show the page in the user's browser.

    Raises:
        InputError: the address cannot be listened on; or it is no finished run's folder.
        ModelError: see `load`.
    """
    # Before the model, which takes seconds. Who connects early waits in the socket's queue.
    with listen(host, port) as listener, suppress(KeyboardInterrupt):
        address, number = listener.getsockname()[:2]
        loopback = ipaddress.ip_address(address).is_loopback
        with console.status("loading and compiling"):
            predictor = Predictor(load(folder))
            predictor.warm_up()
        if not loopback:
            line = f"{host}: other machines can reach it, and there is no password; without --host this one alone can"
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
        url = f"http://{f'[{host}]' if ':' in host else host}:{number}/"
        console.print(f"ready on {url} (Ctrl-C ends)", markup=False, highlight=False, soft_wrap=True)
        if open_browser:
            webbrowser.open(url)
        with predictor:
            server(application(predictor, round(max_mb * 1e6), host if loopback else None)).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: somebody else has the port, or the host is not this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or one_line(error)
        raise InputError(
            f"{host}, port {port}: cannot be listened on ({reason}); give another --host or --port (0: any free one)."
        ) from None


def server(app: Starlette) -> uvicorn.Server:
    """uvicorn as it is run here; HTTP alone, and silent but for errors."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=[("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")],
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)
