"""A page on which the images that an audit found are kept, relabelled or dropped, one at a time, by keyboard.

`GET /` is the page, `GET /items` the images to decide on as JSON, `GET /image/SPLIT/ROW` an image. `POST /decide` takes
`{"item": 3, "action": "keep" | "drop" | "relabel", "label": "cat"}`, `POST /undo` nothing; both answer as `/items`.

After every decision the table is written anew: all images but those dropped, as `csv:` reads them. No photo is touched.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kbaseline.audit.audit import Audit
from kbaseline.audit.copies import kept_together
from kbaseline.data.duplicates import Place, all_places
from kbaseline.data.pictures import FilePictures
from kbaseline.errors import InputError
from kbaseline.render.images import encoded
from kbaseline.serve.page import Page, allowed_hosts, refuse_other_sites
from kbaseline.storage.run_folder import RunFolder

TABLE = "fixed.csv"
"""File in the audit's folder that `csv:` reads."""

ACTIONS = ("keep", "drop", "relabel")


@dataclass(frozen=True)
class Item:
    """One image to decide on.

    Attributes:
        place: the image.
        why: what was found, in a few words.
        beside: the image it is a copy of; None for a suspect or an odd image.
        suggested: the label to offer first; None for a copy or an odd image.
    """

    place: Place
    why: str
    beside: Place | None = None
    suggested: int | None = None


class Review:
    """What was decided, and the table that follows from it.

    Args:
        audit: of images that are files.
        folder: where the table is written.

    Raises:
        InputError: the images are not files, so that no table can name them.
    """

    def __init__(self, audit: Audit, folder: RunFolder) -> None:
        self.audit, self._folder = audit, folder
        self._paths = {place: _path(audit, place) for place in all_places(audit.data)}
        self.items = _items(audit)
        self.decisions: dict[int, tuple[str, int]] = {}
        self._order: list[int] = []
        self._groups = dict(zip(self._paths, kept_together(audit.data, audit.near_duplicates).tolist(), strict=True))
        self._write()

    @property
    def table(self) -> Path:
        """The table."""
        return self._folder.path / TABLE

    def decide(self, item: int, action: str, label: int) -> None:
        """Keeps, drops or relabels the image of an item."""
        self.decisions[item] = (action, label)
        self._order = [*(one for one in self._order if one != item), item]
        self._write()

    def undo(self) -> None:
        """Takes back the last decision, if there is one."""
        if self._order:
            del self.decisions[self._order.pop()]
            self._write()

    def state(self) -> dict[str, Any]:
        """Items, classes and decisions, as the page needs them."""
        names = self.audit.data.class_names
        return {
            "classes": list(names),
            "items": [self._shown(number, item) for number, item in enumerate(self.items)],
            "last": self._order[-1] if self._order else None,
            "table": str(self.table),
        }

    def _shown(self, number: int, item: Item) -> dict[str, Any]:
        decision = self.decisions.get(number)
        return {
            "image": _address(item.place),
            "name": self.audit.name(item.place),
            "label": self.audit.label(item.place.label),
            "split": item.place.split,
            "why": item.why,
            "beside": _address(item.beside) if item.beside else None,
            "beside_name": f"{self.audit.name(item.beside)} ({item.beside.split})" if item.beside else None,
            "suggested": None if item.suggested is None else self.audit.label(item.suggested),
            "decision": None if decision is None else {"action": decision[0], "label": self.audit.label(decision[1])},
        }

    def _write(self) -> None:
        """An image that stands in several items is dropped if one says so, else has the label it was given last."""
        labels = {place: place.label for place in self._paths}
        dropped = set()
        for number in self._order:
            action, label = self.decisions[number]
            place = self.items[number].place
            if action == "drop":
                dropped.add(place)
            elif action == "relabel":
                labels[place] = label
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "label", "split", "group"])
        for place, path in self._paths.items():
            if place not in dropped:
                writer.writerow([path, self.audit.label(labels[place]), place.split, self._groups[place]])
        self._folder.write_text(TABLE, text.getvalue())


def review_application(review: Review, loopback: str | None) -> Starlette:
    """The ASGI application.

    Args:
        review: what it decides on.
        loopback: the loopback name or address it listens on, or None if other machines can reach it.
    """
    endpoints = _Endpoints(review)
    return Starlette(
        routes=[
            Route("/", endpoints.page),
            Route("/items", endpoints.items),
            Route("/image/{split}/{row:int}", endpoints.image),
            Route("/decide", endpoints.decide, methods=["POST"]),
            Route("/undo", endpoints.undo, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(loopback), www_redirect=False)],
        exception_handlers={HTTPException: _error_response},
    )


class _Endpoints:
    """Handlers of the endpoints; see the module."""

    def __init__(self, review: Review) -> None:
        self._review, self._page = review, Page("review", "'self' data:")

    async def page(self, request: Request) -> Response:
        """`GET /`."""
        return self._page.response(source=self._review.audit.data.source, table=self._review.table)

    async def items(self, request: Request) -> Response:
        """`GET /items`."""
        return JSONResponse(self._review.state())

    async def image(self, request: Request) -> Response:
        """`GET /image/SPLIT/ROW`: the image as the network sees it."""
        split = self._review.audit.data.splits.get(request.path_params["split"])
        row = request.path_params["row"]
        if split is None or not row < len(split):
            raise HTTPException(404, f"image {request.url.path!r}: there is no such image.")
        content, kind = encoded(np.asarray(split.images[row]))
        return Response(content, media_type=kind)

    async def decide(self, request: Request) -> Response:
        """`POST /decide`."""
        refuse_other_sites(request)
        try:
            asked: Mapping[str, Any] = await request.json()
            item, action, label = asked["item"], asked["action"], asked.get("label")
            classes = self._review.audit.data.class_names
            number = classes.index(label) if action == "relabel" else 0
        except (ValueError, KeyError, TypeError, AttributeError):
            raise HTTPException(400, "decision: must be {item, action, label}, with a label that is a class.") from None
        if action not in ACTIONS or not isinstance(item, int) or not 0 <= item < len(self._review.items):
            raise HTTPException(400, f"decision: item or action is unknown; an action is one of {', '.join(ACTIONS)}.")
        self._review.decide(item, action, number)
        return JSONResponse(self._review.state())

    async def undo(self, request: Request) -> Response:
        """`POST /undo`."""
        refuse_other_sites(request)
        self._review.undo()
        return JSONResponse(self._review.state())


async def _error_response(request: Request, error: Exception) -> Response:
    status, line = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "failed")
    return JSONResponse({"error": line}, status)


def _items(audit: Audit) -> list[Item]:
    """Suspects, copies but the first of each group, and odd images, in this order."""
    suspects = [
        Item(one.place, f"looks like {audit.label(one.suggested)}", suggested=one.suggested) for one in audit.suspects
    ]
    copies = [
        Item(place, f"a copy, agreement {group.score:.2f}", beside=group.places[0])
        for group in sorted(audit.near_duplicates, key=lambda group: not group.leaks)
        for place in group.places[1:]
    ]
    return [*suspects, *copies, *(Item(odd.place, odd.kind) for odd in audit.odd_images)]


def no_files(source: str) -> InputError:
    """The error for a source whose images are not files."""
    return InputError(
        f"source {source!r}: its images are not files, so no table can name them; --fix needs folder:PATH or csv:PATH."
    )


def _path(audit: Audit, place: Place) -> Path:
    provenance = audit.data.splits[place.split].provenance
    if provenance is None or not isinstance(provenance.pictures, FilePictures):
        raise no_files(audit.data.source)
    return provenance.pictures.open(int(provenance.numbers[place.row])).resolve()


def _address(place: Place) -> str:
    return f"/image/{place.split}/{place.row}"
