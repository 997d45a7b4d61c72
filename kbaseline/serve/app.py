"""The HTTP endpoints of a served run, as an ASGI application.

`GET /` returns the page, `GET /about` the run as JSON: classes, accuracies, TTA settings and limits on images.

`POST /predict` takes an image as the field `image` of a form (multipart/form-data) or as the whole body. Query
parameters: `tta=true|false` (default: whether the run has test-time augmentation) and `top=K` (default: 5). Response:

    {"classes": [{"name": "cat", "probability": 0.93}, ...],        the K most probable, most probable first; 0 to 1
     "set": ["cat", "lynx"],                                        the 90 % prediction set
     "tta": {"classes": [...], "set": [...]},                       null without TTA
     "unfamiliarity": 0.71, "unfamiliar": false,                    above 1 and true: none of these, probably
     "image": {"format": "JPEG", "height": 3000, "width": 4000},    in pixels, after EXIF rotation
     "milliseconds": {"decode": 41.2, "plain": 12.0, "tta": 98.7}}  without time spent in the queue

`set`, `unfamiliarity` and `unfamiliar` are null for a run of an older version, whose probabilities are not calibrated.

An error is one line, `{"error": "..."}`, with status 400 (query, form or an empty body), 403 (a request from a page of
another site), 413 (too large), 422 (not an image, truncated, or too many pixels) or 503 (shutting down). With too many
connections a 503 is plain text, for nothing of the request is read then.

Probabilities are bitwise those of `kbaseline predict RUN FILE`. No image is written to disk.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import closing, suppress
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from kbaseline.data.decode import FORMATS, BadImageError
from kbaseline.devices.environment import version
from kbaseline.errors import KBaselineError, did_you_mean
from kbaseline.serve.page import Page, allowed_hosts, refuse_other_sites
from kbaseline.serve.predictor import Predictor

_EXPECTED = (HTTPException, MultiPartException, FormParserError, BadImageError, KBaselineError, ClientDisconnect)
"""Errors that give a one-line response only; any other exception is also logged."""

_LINGER = 2.0
"""Seconds to read and discard what a refused client still sends; closing at once could lose the response too."""


def application(predictor: Predictor, max_bytes: int, loopback: str | None) -> Starlette:
    """The ASGI application.

    Args:
        predictor: of the run.
        max_bytes: maximum size of a request body.
        loopback: the loopback name or address it listens on, or None if other machines can reach it.
    """
    endpoints = _Endpoints(predictor, max_bytes)
    app = Starlette(
        routes=[
            Route("/", endpoints.page),
            Route("/about", endpoints.about),
            Route("/predict", endpoints.predict, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(loopback), www_redirect=False)],
        exception_handlers=dict.fromkeys((*_EXPECTED, Exception), _error_response),
    )
    app.router.redirect_slashes = False
    return app


class _Endpoints:
    """Handlers of the endpoints; see the module."""

    def __init__(self, predictor: Predictor, max_bytes: int) -> None:
        self.predictor, self.max_bytes = predictor, max_bytes
        self._page = Page("serve", "data: blob:")

    async def page(self, request: Request) -> Response:
        """`GET /`."""
        return self._page.response(about=self._about(), address=str(request.base_url))

    async def about(self, request: Request) -> Response:
        """`GET /about`."""
        return JSONResponse(self._about())

    async def predict(self, request: Request) -> Response:
        """`POST /predict`."""
        refuse_other_sites(request)
        try:
            encoded = await self._image_bytes(request)
            tta, top = self._query(request)
            return JSONResponse(await self.predictor.predict(encoded, tta, top))
        except asyncio.CancelledError:
            raise HTTPException(503, "the server is shutting down.") from None

    def _about(self) -> dict[str, Any]:
        limits = {"formats": sorted(FORMATS), "max_bytes": self.max_bytes}
        about = self.predictor.about()
        return {**about, "input": about["input"] | limits, "kbaseline": version("kbaseline")}

    def _query(self, request: Request) -> tuple[bool, int]:
        """`tta` and `top`."""
        query, has_tta = request.query_params, self.predictor.has_tta
        for name in query:
            if name not in ("tta", "top"):
                hint = did_you_mean(name, ("tta", "top"))
                raise HTTPException(400, f"query {name[:40]!r}: unknown; must be tta or top.{hint}")
        tta = query.get("tta", "true" if has_tta else "false")
        if tta not in ("true", "false"):
            raise HTTPException(400, f"query tta: must be true or false; got {tta[:40]!r}.")
        if tta == "true" and not has_tta:
            raise HTTPException(400, "query tta: the run's configuration turns it off (tta: null); use tta=false.")
        top = query.get("top", "5")
        if not (top.isascii() and top.isdecimal() and len(top) <= 9 and int(top)):
            raise HTTPException(400, f"query top: must be a whole number, at least 1; got {top[:40]!r}.")
        return tta == "true", int(top)

    async def _image_bytes(self, request: Request) -> bytes:
        """The encoded image: the body, or the form field."""
        if int(request.headers.get("content-length", 0)) > self.max_bytes:
            raise self._too_large()
        if not request.headers.get("content-type", "").lower().startswith("multipart/"):
            encoded = b"".join([chunk async for chunk in self._limited(request)])
            if not encoded:
                raise HTTPException(400, "body: empty; send an image as the body, or in the form field 'image'.")
            return encoded
        parser = _InMemory(request.headers, self._limited(request), max_files=1, max_fields=8)
        with closing(parser):
            return await self._field(await parser.parse())

    async def _field(self, form: FormData) -> bytes:
        """The file in the form field `image`."""
        if others := form.keys() - {"image"}:
            name = min(others)[:40]
            raise HTTPException(400, f"field {name!r}: unknown; send the image in 'image', and options in the query.")
        image = form.get("image")
        if not isinstance(image, UploadFile):
            what = "missing" if image is None else "text, not a file"
            raise HTTPException(400, f"field 'image': {what}; send an image file (curl -F image=@photo.jpg).")
        if not (encoded := await image.read()):
            raise HTTPException(400, "field 'image': the file is empty; send an image file.")
        return encoded

    async def _limited(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The chunks of the body, up to the size limit, even if its declared length was wrong."""
        received = 0
        async for chunk in request.stream():
            received += len(chunk)
            if received > self.max_bytes:
                raise self._too_large()
            yield chunk

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413, f"body: more than {self.max_bytes / 1e6:g} MB; send a smaller image, or raise --max-mb."
        )


class _InMemory(MultiPartParser):
    """Starlette's form parser, without its writing of files above 1 MB to disk."""

    spool_max_size = sys.maxsize

    def close(self) -> None:
        """Closes every file, including those of a truncated form, which never reach a `FormData`."""
        for file in self._files_to_close_on_error:
            file.close()


class _ClosingResponse(JSONResponse):
    """A response to a client that is still sending: discards its data for `_LINGER` seconds, then closes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body"})


async def _error_response(request: Request, error: Exception) -> Response:
    """A one-line response to any exception; tracebacks go to the server's log, never to the client."""
    if isinstance(error, HTTPException):
        line = error.detail
        if error.status_code in (404, 405):
            line = f"{line}: use GET /, GET /about or POST /predict."
        if error.status_code == 413:
            return _ClosingResponse({"error": line}, 413, {"Connection": "close"})
        return JSONResponse({"error": line}, error.status_code, error.headers)
    if isinstance(error, BadImageError):
        return JSONResponse({"error": f"image: cannot be read ({error})."}, 422)
    if isinstance(error, MultiPartException | FormParserError | ClientDisconnect):
        return JSONResponse({"error": f"form: cannot be read ({error or 'truncated'})."}, 400)
    line = (
        str(error) if isinstance(error, KBaselineError) else f"unexpected {type(error).__name__}; see the server's log."
    )
    return JSONResponse({"error": line}, 500)
