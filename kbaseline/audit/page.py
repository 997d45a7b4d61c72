"""`audit.html`: what an audit found, as one self-contained page of pictures."""

from typing import TYPE_CHECKING, Any

import numpy as np

from kbaseline.audit.near_duplicates import NearDuplicates
from kbaseline.console.format import shortened
from kbaseline.data.duplicates import Place
from kbaseline.devices.environment import version
from kbaseline.render.images import SMALL, chart, picture
from kbaseline.render.plots import plot_learning_curve
from kbaseline.render.templates import html_template

if TYPE_CHECKING:
    from kbaseline.audit.audit import Audit

_MOST_PAIRS, _MOST_SUSPECTS, _MOST_ODD = 60, 60, 12
"""Most items that the page shows of each kind, to bound its size."""


def render_audit(audit: "Audit", seconds: float | None = None) -> str:
    """The page as HTML; it makes no network requests and runs no script. `seconds` is how long the audit took."""
    groups = sorted(audit.near_duplicates, key=lambda group: (not group.leaks, not group.contradicts))
    kinds = dict.fromkeys(odd.kind for odd in audit.odd_images)
    figure = plot_learning_curve([(p.images, p.accuracy, p.spread) for p in audit.curve], audit.floor.majority, 4.0)
    return html_template("audit").render(
        data=audit.data,
        backbone=audit.backbone,
        images=sum(map(len, audit.data.splits.values())),
        floor=audit.floor,
        findings=audit.findings,
        seconds=seconds,
        groups=len(groups),
        copies=[_pair(audit, group) for group in groups[:_MOST_PAIRS]],
        suspect_count=len(audit.suspects),
        suspects=[
            {**_shot(audit, one.place), "suggested": audit.label(one.suggested)}
            for one in audit.suspects[:_MOST_SUSPECTS]
        ],
        odd=[
            {
                "name": kind,
                "count": sum(odd.kind == kind for odd in audit.odd_images),
                "shown": [_shot(audit, odd.place) for odd in audit.odd_images if odd.kind == kind][:_MOST_ODD],
            }
            for kind in kinds
        ],
        shortcuts=audit.shortcuts,
        more_images=audit.more_images,
        curve={
            "title": "Learning curve",
            "alt": "accuracy of the probe by number of training images; audit.json has the numbers",
            "image": chart(figure),
        },
        version=version("kbaseline"),
    )


def _pair(audit: "Audit", group: NearDuplicates) -> dict[str, Any]:
    """What the page shows of a group."""
    kind = "leak between splits" if group.leaks else "within one split"
    return {
        "halves": [_shot(audit, place) for place in group.pair],
        "verdict": f"{kind}, different labels" if group.contradicts else kind,
        "leaks": group.leaks,
        "contradicts": group.contradicts,
        "score": group.score,
        "more": len(group.places) - 2,
    }


def _shot(audit: "Audit", place: Place) -> dict[str, Any]:
    """An image's picture, name, split and label."""
    image = np.asarray(audit.data.splits[place.split].images[place.row])
    return {
        "picture": picture(image),
        "small": max(image.shape[:2]) <= SMALL,
        "name": audit.name(place),
        "file": shortened(audit.name(place).rsplit("/", 1)[-1], 40),
        "split": place.split,
        "label": audit.label(place.label),
    }
