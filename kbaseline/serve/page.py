"""A page with its own script, and requests that only that page may send."""

import base64
import hashlib
import importlib.resources
from typing import Any

from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse

from kbaseline.render.templates import html_template


class Page:
    """The template `NAME.html.j2` with the script `NAME.js`.

    Args:
        name: of both files.
        images: what the page may show, in the words of a content security policy.
    """

    def __init__(self, name: str, images: str) -> None:
        script = importlib.resources.files("kbaseline").joinpath(f"render/pages/{name}.js").read_text(encoding="utf-8")
        self._template, self._script = html_template(name), Markup(script)  # noqa: S704 - our own
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        # The page may run only its own script, and may connect only to this server.
        self._policy = (
            f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src {images}; "
            "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )

    def response(self, **values: Any) -> HTMLResponse:
        """The page, rendered with these values."""
        html = self._template.render(script=self._script, **values)
        return HTMLResponse(html, headers={"Content-Security-Policy": self._policy})


def refuse_other_sites(request: Request) -> None:
    """Refuses a request from a page of another site, with status 403.

    Any page in the user's browser can send a form here, although it cannot read the response.
    """
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise HTTPException(
            403, f"origin {origin[:80]!r}: only this server's own page may send requests; open that page."
        )


def allowed_hosts(loopback: str | None) -> list[str]:
    """The values of `Host` that a server takes; None for one that other machines can reach, which may have any name.

    DNS rebinding: another site can point its own name to 127.0.0.1 and would then share an origin with this server. Its
    requests still carry that name in Host, which a page cannot change.
    """
    return ["*"] if loopback is None else ["127.0.0.1", "localhost", "[::1]", loopback]
