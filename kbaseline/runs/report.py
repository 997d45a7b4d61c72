"""`report.html`: a run as one self-contained page with charts, mistakes and Grad-CAM heat maps.

The page makes no network requests and runs no script: images are data URIs, and a content security policy forbids
everything else. Class names, paths and configuration are escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from kbaseline.config.schema import Config
from kbaseline.config.splits import DISPLAY_NAMES
from kbaseline.console.bars import status
from kbaseline.data import ImageData, Split
from kbaseline.doubt import IMAGES, LEVELS, Doubt
from kbaseline.errors import with_kind
from kbaseline.metrics import Evaluation, compare_paired, final_evaluation, score_rows
from kbaseline.render.images import chart
from kbaseline.render.plots import plot_confusion, plot_history, plot_lr_find, plot_schedule
from kbaseline.render.templates import html_template
from kbaseline.runs.examples import examples, explained_examples
from kbaseline.runs.record import MAJORITY, RunResult
from kbaseline.runs.results import Sweep
from kbaseline.storage.run_folder import RunFolder

_MISTAKES, _UNCERTAIN, _PAIRS, _CLASSES, _SKIPPED = 12, 12, 10, 50, 100
"""Most items that the page shows of each kind, to bound its size."""

_WIDTH = 4.0
"""Width of a chart in inches; it fits a phone unscaled."""

_ROOMY = 12
"""With more classes than this, the confusion matrix is drawn wider."""


@dataclass(frozen=True, eq=False)
class ReportData:
    """The content of the page.

    Attributes:
        result: the result of the run.
        config: the configuration of the run.
        data: its validation or test images are shown.
        model: the trained model, from uint8 images to logits.
        evaluations: split -> kind of prediction -> evaluation; `test` is shown if present, else `valid`.
        sweeps: sweeps by stage.
        applied: learning rate and momentum, one row per step.
        doubt: what to doubt of the model's answers; None for a run that validated on images it was trained on.
    """

    result: RunResult
    config: Config
    data: ImageData
    model: keras.Model
    evaluations: Mapping[str, Mapping[str, Evaluation]]
    sweeps: Mapping[str, Sweep]
    applied: Sequence[Mapping[str, Any]]
    doubt: Doubt | None = None


def write_report(folder: RunFolder, report: ReportData, console: Console) -> None:
    """Writes `report.html`, or prints why it cannot: a finished run must not fail because of its report."""
    try:
        with status(console, "report.html"):
            folder.write_text("report.html", render_report(report))
    except Exception as error:
        line = f"report.html: not written ({with_kind(error)}); result.json has all results"
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def render_report(report: ReportData) -> str:
    """The page as HTML."""
    data, split = report.data, "test" if "test" in report.evaluations else "valid"
    by_kind = report.evaluations[split]
    last = final_evaluation(by_kind)
    return html_template("report").render(
        config=report.config,
        data=data,
        split=DISPLAY_NAMES[split],
        last=last,
        trained_on=report.config.data.trains_on(split),
        wrong=int((last.probabilities.argmax(axis=1) != last.labels).sum()),
        with_tta="tta" in by_kind,
        steps=_steps(report.result),
        kept=report.result.kept_step if report.config.chooses_best else None,
        dropped_tta=report.result.dropped_tta,
        scores=score_rows(by_kind),
        paired=compare_paired(by_kind["plain"], last) if "tta" in by_kind else None,
        doubt=_doubt(report, by_kind),
        charts=_charts(report),
        confusion=_confusion(last),
        roomy=len(last.class_names) > _ROOMY,
        confused=last.most_confused()[:_PAIRS],
        mistakes=_mistakes(report.model, data.splits[split], last),
        uncertain=_uncertain(data.splits[split], last),
        classes=sorted(last.per_class, key=lambda row: (not row["support"], row["f1"]))[:_CLASSES],
        skipped=data.skipped[:_SKIPPED],
        history=report.result.history,
        seconds=report.result.seconds,
        environment=report.result.environment,
    )


def _steps(result: RunResult) -> list[dict[str, Any]]:
    """Accuracy by step, with the error rate (0 to 1) and the length of its bar in percent."""
    wrong = [1 - step.accuracy for step in result.steps]
    # Beside the errors of the majority class all others would look alike.
    longest = max([one for one, step in zip(wrong, result.steps, strict=True) if step.name != MAJORITY] + [1e-9])
    return [
        {**asdict(step), "wrong": one, "bar": min(100, 100 * one / longest)}
        for one, step in zip(wrong, result.steps, strict=True)
    ]


def _doubt(report: ReportData, by_kind: Mapping[str, Evaluation]) -> dict[str, Any] | None:
    """Temperature, prediction sets scored on the images shown, and the validation images called unfamiliar."""
    doubt, kind, last = report.doubt, list(by_kind)[-1], final_evaluation(by_kind)
    if doubt is None:
        return None
    calibrated, every = doubt.calibrated(last.probabilities, kind), np.arange(len(last.labels))
    found = {level: doubt.sets(calibrated, kind, level) for level in LEVELS}
    summary = doubt.summary(kind)
    sets = [
        {
            "level": level,
            "threshold": threshold,
            "classes": float(inside.sum(axis=1).mean()),
            "right": float(inside[every, last.labels].mean()),
        }
        for (level, inside), threshold in zip(found.items(), summary["set_thresholds"].values(), strict=True)
    ]
    images = min(len(report.data.valid), IMAGES)
    # The share counts one image more, the next one, among those above the limit.
    above = [{"limit": limit, "images": round(share * (images + 1)) - 1} for share, limit in doubt.limits.items()]
    return {"temperature": summary["temperature"], "sets": sets, "above": above, "images": images}


def _chart(title: str, figure: Figure, alt: str) -> dict[str, str]:
    return {"title": title, "alt": f"{title}: {alt}.", "image": chart(figure)}


def _charts(report: ReportData) -> list[dict[str, str]]:
    """Loss and accuracy, rates and momentum, and every stage's sweep."""
    history = plot_history(report.result.history, report.result.tta_accuracy, _WIDTH)
    schedule = plot_schedule(report.applied, _WIDTH)
    charts = [
        _chart(
            "Loss and accuracy", history, "of training and validation after each epoch; the table holds the numbers"
        ),
        _chart("Schedule", schedule, "learning rate and momentum at every step"),
    ]
    for name, sweep in report.sweeps.items():
        chosen = "no rate was chosen" if sweep.chosen is None else f"the rate chosen is {sweep.chosen:.1e}"
        figure = plot_lr_find([sweep.plot_data("")], _WIDTH)
        charts.append(_chart(f"Learning-rate finder, {name}", figure, f"loss against learning rate; {chosen}"))
    return charts


def _confusion(evaluation: Evaluation) -> dict[str, str]:
    width = _WIDTH if len(evaluation.class_names) <= _ROOMY else 1.6 * _WIDTH
    figure = plot_confusion(evaluation.confusion, evaluation.class_names, width)
    return _chart("Confusion matrix", figure, "images by actual class, in rows, and predicted class, in columns")


def _mistakes(model: keras.Model, split: Split, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The mistakes with the highest loss, with Grad-CAM heat maps for the predicted and the true class."""
    predicted = evaluation.probabilities.argmax(axis=1)
    leading = [one["index"] for one in evaluation.top_losses(len(evaluation.labels))]
    worst = [index for index in leading if predicted[index] != evaluation.labels[index]][:_MISTAKES]
    return explained_examples(model, split, worst, evaluation)


def _uncertain(split: Split, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The images with the lowest probability of their most probable class, right or wrong."""
    order = np.argsort(evaluation.probabilities.max(axis=1), kind="stable")
    return examples(split, order[:_UNCERTAIN], evaluation)
