"""`report.html`: a run as one self-contained page, its charts, its mistakes and what the network looked at.

The page asks nothing of the network and runs no script: pictures are data URIs, and a content security policy forbids
the rest. Class names, paths and configuration are text, whatever they hold.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from kbaseline.config.schema import Config
from kbaseline.console.format import interval, percent
from kbaseline.data import ImageData, Split
from kbaseline.errors import with_kind
from kbaseline.gradcam import grad_cam
from kbaseline.metrics import Evaluation, compare_paired, final_evaluation
from kbaseline.render.images import SMALL, chart, heat_picture, picture
from kbaseline.render.plots import plot_confusion, plot_history, plot_lr_find, plot_schedule
from kbaseline.render.templates import html_template
from kbaseline.runs.record import RunResult
from kbaseline.runs.results import Sweep
from kbaseline.storage.run_folder import RunFolder

_MISTAKES, _UNCERTAIN, _PAIRS, _CLASSES, _SKIPPED = 12, 12, 10, 50, 100
"""The most the page shows of each, so that its size is bounded whatever the data."""

_WIDTH = 4.0
"""Inches of a chart: a phone shows it unscaled."""

_ROOMY = 12
"""Classes above which the confusion matrix needs more width than that."""


@dataclass(frozen=True, eq=False)
class ReportData:
    """What the page is made of.

    Attributes:
        result: what the run found.
        config: what it ran with.
        data: whose validation or test images are shown.
        model: uint8 images in, logits out, as trained.
        evaluations: split -> kind of prediction -> its evaluation; `valid` and perhaps `test`, which then is the one
            shown.
        sweeps: by stage.
        applied: one row a step: its learning rate and momentum.
    """

    result: RunResult
    config: Config
    data: ImageData
    model: keras.Model
    evaluations: Mapping[str, Mapping[str, Evaluation]]
    sweeps: Mapping[str, Sweep]
    applied: Sequence[Mapping[str, Any]]


def write_report(folder: RunFolder, report: ReportData, console: Console) -> None:
    """Writes `report.html`, or says in a line why not: it comes last, and a run that cannot be drawn is not lost."""
    try:
        with console.status("report.html"):
            folder.write_text("report.html", render_report(report))
    except Exception as error:
        line = f"report.html: not written ({with_kind(error)}); result.json holds every figure"
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def render_report(report: ReportData) -> str:
    """The page as HTML."""
    data, split = report.data, "test" if "test" in report.evaluations else "valid"
    by_kind = report.evaluations[split]
    last = final_evaluation(by_kind)
    return html_template("report").render(
        config=report.config,
        data=data,
        split={"valid": "validation", "test": "test"}[split],
        last=last,
        wrong=int((last.probabilities.argmax(axis=1) != last.labels).sum()),
        with_tta="tta" in by_kind,
        steps=_steps(report.result),
        figures=_figures(by_kind),
        paired=compare_paired(by_kind["plain"], last) if "tta" in by_kind else None,
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
    """Accuracy by step, with the share of wrong images and the length of its bar in percent."""
    worst = max(*(1 - step.accuracy for step in result.steps), 1e-9)
    return [
        {**asdict(step), "wrong": 1 - step.accuracy, "bar": 100 * (1 - step.accuracy) / worst} for step in result.steps
    ]


def _figures(kinds: Mapping[str, Evaluation]) -> list[tuple[str, list[str]]]:
    """Rows of (name, one text for each kind of prediction)."""
    found = list(kinds.values())
    columns = [
        {
            "accuracy": percent(one.accuracy),
            "95 % interval": interval(one.interval),
            "balanced accuracy": percent(one.balanced_accuracy),
            "macro F1": percent(one.macro_f1),
            f"top-{one.top_k} accuracy": percent(one.top_k_accuracy),
            "loss, in nats": f"{one.loss:.4f}",
            "calibration error (ECE)": percent(one.calibration.error),
            "temperature": f"{one.calibration.temperature:.2f}",
            "ECE at that temperature": percent(one.calibration.error_at_temperature),
        }
        for one in found
    ]
    return [(name, [column[name] for column in columns]) for name in columns[0]]


def _chart(title: str, figure: Figure, alt: str) -> dict[str, str]:
    light, dark = chart(figure)
    return {"title": title, "alt": f"{title}: {alt}.", "light": light, "dark": dark}


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


def _confusion(found: Evaluation) -> dict[str, str]:
    width = _WIDTH if len(found.class_names) <= _ROOMY else 1.6 * _WIDTH
    figure = plot_confusion(found.confusion, found.class_names, width)
    return _chart("Confusion matrix", figure, "images by actual class, in rows, and predicted class, in columns")


def _examples(split: Split, shown: Iterable[int], found: Evaluation) -> list[dict[str, Any]]:
    """The images with these numbers, each with its name, picture, truth, prediction and both probabilities."""
    small = max(split.images.shape[1:3]) <= SMALL
    examples = [{**found.example(int(index)), "picture": picture(np.asarray(split.images[index]))} for index in shown]
    return [
        {**one, "name": split.name(one["index"]), "small": small, "right": one["predicted"] == one["actual"]}
        for one in examples
    ]


def _mistakes(model: keras.Model, split: Split, found: Evaluation) -> list[dict[str, Any]]:
    """The mistakes with the highest loss, and where the network saw the class it named and the true one."""
    predicted = found.probabilities.argmax(axis=1)
    leading = [one["index"] for one in found.top_losses(len(found.labels))]
    worst = [index for index in leading if predicted[index] != found.labels[index]][:_MISTAKES]
    examples = _examples(split, worst, found)
    if examples:
        pixels = np.stack([split.images[i] for i in worst])
        # Both questions in one call, which compiles once.
        asked = np.concatenate([predicted[worst], found.labels[worst]])
        named, true = np.split(grad_cam(model, np.concatenate([pixels, pixels]), asked), 2)
        for example, image, heat_named, heat_true in zip(examples, pixels, named, true, strict=True):
            example["heat_predicted"] = heat_picture(image, heat_named)
            example["heat_actual"] = heat_picture(image, heat_true)
    return examples


def _uncertain(split: Split, found: Evaluation) -> list[dict[str, Any]]:
    """The images whose most probable class has the least probability, right or wrong."""
    order = np.argsort(found.probabilities.max(axis=1), kind="stable")
    return _examples(split, order[:_UNCERTAIN], found)
