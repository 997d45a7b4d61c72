"""`model_card.md`: the exported network, how to use it, its training data and its scores."""

from datetime import date
from pathlib import Path

from rich.filesize import decimal

from kbaseline.commands.evaluate import evaluate_kept
from kbaseline.config.splits import DISPLAY_NAMES
from kbaseline.devices.environment import environment
from kbaseline.doubt import LEVELS, Doubt
from kbaseline.render.templates import markdown_template
from kbaseline.runs.record import RunRecord, accuracy_of_folds


def render_card(
    run: RunRecord,
    kind: str,
    file: Path,
    size: tuple[int, int],
    agreement: str,
    rounded: bool = False,
    doubt: Doubt | None = None,
) -> str:
    """The card as Markdown.

    Args:
        run: the exported run.
        kind: the format.
        file: the exported file.
        size: height and width of its input images, in pixels.
        agreement: result of the comparison with the run.
        rounded: whether the run computed in bfloat16; the file computes in float32.
        doubt: of the run.
    """
    report = evaluate_kept(run)
    return markdown_template("model_card").render(
        run=run,
        config=run.config,
        backbone=Path(run.config.model.backbone).name,  # for a backbone file, its name without the path
        data=run.result.data,
        environment=run.result.environment,
        kind=kind,
        file=file.name,
        bytes=decimal(file.stat().st_size),
        height=size[0],
        width=size[1],
        image_size=run.result.image_size,
        fitted=size == run.result.image_size,
        draft=2 * max(run.result.image_size),
        agreement=agreement,
        rounded=rounded,
        doubt=doubt,
        levels=LEVELS,
        summary=doubt and doubt.summary(),
        report=report,
        folds=accuracy_of_folds(run.folder, run.config),
        split=DISPLAY_NAMES[report.split],
        stages=[stage.model_dump() for stage in run.config.stages],
        now=environment(),
        today=date.today(),
    )
