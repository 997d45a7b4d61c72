"""The HTTP endpoints of a served run, as an ASGI application.

`GET /` is the page and `GET /about` the run as JSON: classes, accuracies, TTA, and what a picture must be.

`POST /predict` takes a picture as the field `image` of a form (multipart/form-data) or as the whole body. Its query may
hold `tta=true|false` (default: whether the run has test-time augmentation) and `top=K` (default: 5). It answers

    {"classes": [{"name": "cat", "probability": 0.93}, ...],        the K likeliest, likeliest first; 0 to 1
     "tta": {"classes": [...]},                                     null where it was not asked for or the run has none
     "image": {"format": "JPEG", "height": 3000, "width": 4000},    pixels, right side up
     "milliseconds": {"decode": 41.2, "plain": 12.0, "tta": 98.7}}  without waiting for other pictures

or else one line, `{"error": "..."}`, with 400 (query, form or an empty body), 403 (a page of another site asks), 413
(too large), 422 (no image, truncated, too many pixels) or 503 (too many at once, or shutting
down). Probabilities are, to the bit, those of `kbaseline predict RUN FILE`. Nothing of a picture is written to disk.
"""

import asyncio
import base64
import hashlib
import importlib.resources
import sys
from collections.abc import AsyncGenerator
from contextlib import closing, suppress
from typing import Any

from markupsafe import Markup
from python_multipart.exceptions import FormParserError
from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from kbaseline.data.decode import FORMATS, BadImageError
from kbaseline.devices.xla import environment
from kbaseline.errors import KBaselineError, did_you_mean
from kbaseline.render.templates import html_template
from kbaseline.serve.predictor import Predictor

_EXPECTED = (HTTPException, MultiPartException, FormParserError, BadImageError, KBaselineError, ClientDisconnect)
"""What is answered with one line and goes no further; anything else also goes to the log."""

_LINGER = 2.0
"""Seconds in which what a refused client still sends is thrown away: closed at once, TCP may drop the answer too."""


def application(predictor: Predictor, max_bytes: int, loopback: str | None) -> Starlette:
    """The ASGI application.

    Args:
        answers: of the run.
        max_bytes: the most a request's body may hold.
        loopback: the name or address it listens on if that is this machine's own, None if others can reach it.
    """
    endpoints = _Endpoints(predictor, max_bytes)
    # A page of another site can have its own name point to 127.0.0.1 (DNS rebinding) and would then read answers as if
    # they were its own. Its requests still name it in Host, which no page can set. Who listens to other machines is
    # reached under names that nobody here knows.
    hosts = ["*"] if loopback is None else ["127.0.0.1", "localhost", "[::1]", loopback]
    app = Starlette(
        routes=[
            Route("/", endpoints.page),
            Route("/about", endpoints.about),
            Route("/predict", endpoints.predict, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
        exception_handlers=dict.fromkeys((*_EXPECTED, Exception), _error_response),
    )
    app.router.redirect_slashes = False
    return app


class _Endpoints:
    """What is answered; see the module."""

    def __init__(self, predictor: Predictor, max_bytes: int) -> None:
        self.predictor, self.max_bytes = answers, max_bytes
        script = importlib.resources.files("kbaseline").joinpath("render/pages/serve.js").read_text(encoding="utf-8")
        self._page, self._script = html_template("serve"), Markup(script)  # noqa: S704 - our own
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        # The page may run its own script alone, and reach nothing but this server.
        self._policy = (
            f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data: blob:; "
            "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )

    async def page(self, request: Request) -> Response:
        """`GET /`."""
        html = self._page.render(about=self._about(), address=str(request.base_url), script=self._script)
        return HTMLResponse(html, headers={"Content-Security-Policy": self._policy})

    async def about(self, request: Request) -> Response:
        """`GET /about`."""
        return JSONResponse(self._about())

    async def predict(self, request: Request) -> Response:
        """`POST /predict`."""
        # Any page in the user's browser may send a form here, though it cannot read the answer.
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
            raise HTTPException(403, f"origin {origin[:80]!r}: only this server's own page may ask; open it.")
        try:
            encoded = await self._image_bytes(request)
            tta, top = self._query(request)
            return JSONResponse(await self.predictor.predict(encoded, tta, top))
        except asyncio.CancelledError:
            raise HTTPException(503, "the server is shutting down.") from None

    def _about(self) -> dict[str, Any]:
        limits = {"formats": sorted(FORMATS), "max_bytes": self.max_bytes}
        about = self.predictor.about()
        return {**about, "input": about["input"] | limits, "kbaseline": environment()["kbaseline"]}

    def _query(self, request: Request) -> tuple[bool, int]:
        """`tta` and `top`."""
        query, has_tta = request.query_params, self.predictor.has_tta
        for name in query:
            if name not in ("tta", "top"):
                hint = did_you_mean(name, ("tta", "top"))
                raise HTTPException(400, f"query {name[:40]!r}: unknown; there are tta and top.{hint}")
        tta = query.get("tta", "true" if has_tta else "false")
        if tta not in ("true", "false"):
            raise HTTPException(400, f"query tta: must be true or false; got {tta[:40]!r}.")
        if tta == "true" and not has_tta:
            raise HTTPException(400, "query tta: the run's configuration leaves it out (tta: null); give tta=false.")
        top = query.get("top", "5")
        if not (top.isascii() and top.isdecimal() and len(top) <= 9 and int(top)):
            raise HTTPException(400, f"query top: must be a whole number, at least 1; got {top[:40]!r}.")
        return tta == "true", int(top)

    async def _image_bytes(self, request: Request) -> bytes:
        """The encoded picture: the body, or the form's field."""
        if int(request.headers.get("content-length", 0)) > self.max_bytes:
            raise self._too_large()
        if not request.headers.get("content-type", "").lower().startswith("multipart/"):
            encoded = b"".join([chunk async for chunk in self._limited(request)])
            if not encoded:
                raise HTTPException(400, "body: empty; send a picture as the body, or as a form's field 'image'.")
            return encoded
        parser = _InMemory(request.headers, self._limited(request), max_files=1, max_fields=8)
        with closing(parser):
            return await self._field(await parser.parse())

    async def _field(self, form: FormData) -> bytes:
        """The file in a form's field `image`."""
        if others := form.keys() - {"image"}:
            name = min(others)[:40]
            raise HTTPException(400, f"field {name!r}: unknown; the picture's is 'image', options go into the query.")
        picture = form.get("image")
        if not isinstance(picture, UploadFile):
            what = "missing" if picture is None else "a text"
            raise HTTPException(400, f"field 'image': {what}; send a picture's file in it (curl -F image=@photo.jpg).")
        if not (encoded := await picture.read()):
            raise HTTPException(400, "field 'image': the file is empty; send a picture.")
        return encoded

    async def _limited(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The body's chunks, as long as it keeps to the limit, whatever it said of its length."""
        seen = 0
        async for chunk in request.stream():
            seen += len(chunk)
            if seen > self.max_bytes:
                raise self._too_large()
            yield chunk

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"body: more than {self.max_bytes / 1e6:g} MB; send a smaller picture (--max-mb).")


class _InMemory(MultiPartParser):
    """Starlette's parser of forms, which would write what is above 1 MB to disk."""

    spool_max_size = sys.maxsize

    def close(self) -> None:
        """Closes every file, those of a form that is cut short too, which are in no `FormData`."""
        for file in self._files_to_close_on_error:
            file.close()


class _ClosingResponse(JSONResponse):
    """An answer to a client that is still sending; what comes is thrown away for a moment, then the line is closed."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body"})


async def _error_response(request: Request, error: Exception) -> Response:
    """One line for whatever went wrong; only the server's own errors reach its log, and none the client."""
    if isinstance(error, HTTPException):
        line = error.detail
        if error.status_code in (404, 405):
            line = f"{line}: there are GET /, GET /about and POST /predict."
        if error.status_code == 413:
            return _ClosingResponse({"error": line}, 413, {"Connection": "close"})
        return JSONResponse({"error": line}, error.status_code, error.headers)
    if isinstance(error, BadImageError):
        return JSONResponse({"error": f"image: cannot be read ({error})."}, 422)
    if isinstance(error, MultiPartException | FormParserError | ClientDisconnect):
        return JSONResponse({"error": f"form: cannot be read ({error or 'cut short'})."}, 400)
    line = str(error) if isinstance(error, KBaselineError) else f"unexpected {type(error).__name__}; the log has more."
    return JSONResponse({"error": line}, 500)
