"""Runs the HTTP server of a finished run until Ctrl-C."""

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

from kbaseline.audit.audit import Audit
from kbaseline.console.bars import status
from kbaseline.errors import InputError, one_line
from kbaseline.runs.run import load
from kbaseline.serve.app import application
from kbaseline.serve.predictor import Predictor
from kbaseline.serve.review import Review, review_application
from kbaseline.storage.run_folder import RunFolder

_MAX_CONNECTIONS = 64
"""Most simultaneous connections; with the size limit of requests this bounds the memory for uploads."""

_SHUTDOWN_SECONDS = 3
"""Seconds that open requests get to finish after Ctrl-C."""


def serve_run(
    folder: Path, host: str, port: int, max_mb: float, console: Console, *, open_browser: bool = False
) -> None:
    """Serves a run until Ctrl-C.

    Args:
        folder: the folder of a finished run.
        host: name or address to listen on.
        port: port to listen on; 0 for any free one.
        max_mb: maximum size of a request, in millions of bytes.
        console: where to print that the server is ready.
        open_browser: open the page in the user's browser.

    Raises:
        InputError: the address cannot be listened on, or the folder holds no finished run.
        ModelError: see `load`.
    """
    # Before loading the model, which takes seconds. Early connections wait in the socket's queue.
    with listen(host, port) as listener, suppress(KeyboardInterrupt):
        address, number = listener.getsockname()[:2]
        loopback = ipaddress.ip_address(address).is_loopback
        with status(console, "loading and compiling"):
            predictor = Predictor(load(folder))
            predictor.warm_up()
        if not loopback:
            line = f"{host}: other machines can connect, and there is no password; omit --host to serve only this one"
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
        url = f"http://{f'[{host}]' if ':' in host else host}:{number}/"
        console.print(f"ready on {url} (Ctrl-C to stop)", markup=False, highlight=False, soft_wrap=True)
        if open_browser:
            webbrowser.open(url)
        with predictor:
            server(application(predictor, round(max_mb * 1e6), host if loopback else None)).run(sockets=[listener])


def serve_review(audit: Audit, folder: RunFolder, listener: socket.socket, console: Console) -> None:
    """Serves the page on which an audit's findings are decided, until Ctrl-C.

    Args:
        audit: of images that are files.
        folder: where the table is written after every decision.
        listener: listens on a loopback address; see `listen`.
        console: where to print that the server is ready, and what was decided.

    Raises:
        InputError: the images are not files.
    """
    review = Review(audit, folder)
    host, port = listener.getsockname()[:2]
    line = f"{len(review.items):,} to decide: http://{host}:{port}/ (Ctrl-C when done)"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    with suppress(KeyboardInterrupt):
        server(review_application(review, host)).run(sockets=[listener])
    line = f"decided: {len(review.decisions):,} of {len(review.items):,}; kbaseline fit --data {review.table}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        InputError: the port is in use, or the host is not an address of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or one_line(error)
        raise InputError(
            f"{host}, port {port}: cannot be listened on ({reason}); use another port (--port 0: any free one) or host."
        ) from None


def server(app: Starlette) -> uvicorn.Server:
    """The uvicorn server: HTTP only, logging errors only."""
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
