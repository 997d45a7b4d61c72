"""Plots: what the figures show, for the common run and for the odd ones."""

import io
import math
import subprocess
import sys

import numpy as np
import pytest

from kbaseline.render.plots import plot_confusion, plot_history, plot_lr_find, plot_schedule


def drawn(figure):
    """Renders, so that what only drawing finds is found, and gives the figure back."""
    figure.savefig(io.BytesIO(), format="png", dpi=50)
    return figure


def texts(axes):
    return [text.get_text() for text in axes.texts]


def sweep(**changes):
    lrs = 1e-7 * 1e8 ** (np.arange(90) / 100)
    x = np.log10(lrs)
    smoothed = 2.5 - 2 / (1 + np.exp(-3 * (x + 3))) + np.exp(6 * (x + 0.5))
    curve = {
        "title": "head",
        "lrs": lrs,
        "losses": smoothed + 0.05 * np.sin(np.arange(90)),
        "smoothed": smoothed,
        "suggestions": {"valley": 1e-3, "minimum": 2e-3},
        "chosen": 1e-3,
    }
    return curve | changes


def test_lr_find_has_a_panel_a_stage():
    """One titled panel each, on a logarithmic rate."""
    for count in (1, 2, 3):
        axes = drawn(plot_lr_find([sweep(title=f"stage {i}") for i in range(count)])).axes
        assert [panel.get_title() for panel in axes] == [f"stage {i}" for i in range(count)]
        assert {panel.get_xscale() for panel in axes} == {"log"}


def test_lr_find_marks_suggestions_on_the_curve_and_the_chosen_rate():
    """Each rule's dot lies on the smoothed curve at its rate; the legend lies below the panel."""
    curve = sweep()
    (axes,) = drawn(plot_lr_find([curve])).axes
    lines = {str(line.get_label()): line for line in axes.lines}
    (x,), (y,) = lines["valley  1.0e-03"].get_data()
    assert x == 1e-3
    assert y == pytest.approx(np.interp(-3, np.log10(curve["lrs"]), curve["smoothed"]))
    assert list(lines["chosen  1.0e-03"].get_xdata()) == [1e-3, 1e-3]
    assert axes.get_legend().get_window_extent().y1 < axes.bbox.y0


def test_lr_find_without_a_choice_draws_none():
    """`chosen` None leaves the line out, and no suggestions leave the legend out."""
    (axes,) = drawn(plot_lr_find([sweep(chosen=None)])).axes
    assert not [line for line in axes.lines if str(line.get_label()).startswith("chosen")]
    (bare,) = drawn(plot_lr_find([sweep(chosen=None, suggestions={})])).axes
    assert bare.get_legend() is None


def test_lr_find_shows_the_descent_not_the_explosion():
    """The limits hold all of the way down; the explosion at the end does not flatten it."""
    curve = sweep()
    curve["smoothed"] = np.append(curve["smoothed"][:-1], 1e6)
    (axes,) = plot_lr_find([curve]).axes
    low, high = axes.get_ylim()
    assert low < curve["losses"][:80].min()
    assert 2.5 < high < 5


def test_lr_find_survives_nan_and_flat_and_rising_losses():
    """Losses that are not finite, or never fall, still give a panel with finite limits."""
    broken = sweep()
    broken["smoothed"] = np.where(np.arange(90) > 80, np.nan, broken["smoothed"])
    broken["losses"] = np.where(np.arange(90) > 80, np.inf, broken["losses"])
    curves = [broken, sweep(smoothed=np.full(90, 2.0)), sweep(smoothed=np.linspace(1, 9, 90)), sweep()]
    curves[3] |= {"smoothed": np.full(90, np.nan), "losses": np.full(90, np.nan)}
    for axes in drawn(plot_lr_find(curves)).axes:
        low, high = axes.get_ylim()
        assert math.isfinite(low)
        assert low < high < 100


def schedule_rows(groups=(1.0,), stages=("head", "finetune"), steps=10):
    rows = []
    for stage in stages:
        for i in range(steps):
            lr = 1e-3 * (i + 1)
            row = {"stage": stage, "step": len(rows), "lr": lr, "momentum": 0.95 - 0.01 * i}
            rows.append(row | {f"lr_{j}": lr * factor for j, factor in enumerate(groups)})
    return rows


def values(line):
    return np.asarray(line.get_ydata(), dtype=float)


def test_schedule_shows_rate_and_momentum_by_stage():
    """One line a stage in each panel, from zero on a linear scale, with the boundary marked and named."""
    rows = schedule_rows()
    figure = drawn(plot_schedule(rows))
    upper, lower = figure.axes
    np.testing.assert_allclose(np.concatenate([values(line) for line in upper.lines[:2]]), [r["lr"] for r in rows])
    np.testing.assert_allclose(
        np.concatenate([values(line) for line in lower.lines[:2]]), [r["momentum"] for r in rows]
    )
    assert list(upper.lines[2].get_xdata()) == [9.5, 9.5]
    assert texts(upper) == ["head", "finetune"]
    assert upper.get_yscale() == "linear"
    assert upper.get_ylim()[0] == 0
    assert not figure.legends


def test_schedule_shows_groups_that_differ():
    """Groups at rates of their own are named lines; a group equal to the last one is not drawn twice."""
    figure = drawn(plot_schedule(schedule_rows(groups=(0.01, 1.0, 1.0), stages=("a",))))
    upper, lower = figure.axes
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["layer group 1", "last layer group"]
    assert legend.get_window_extent().y1 < lower.bbox.y0  # where it covers no curve
    np.testing.assert_allclose(values(upper.lines[0]), 1e-5 * np.arange(1, 11))


def test_schedule_takes_stages_with_different_numbers_of_groups():
    """Where a stage trains the head alone, its only group is the last one, not the first of the next stage."""
    rows = schedule_rows(groups=(1.0,), stages=("head",)) + schedule_rows(groups=(0.1, 1.0), stages=("all",))
    for step, row in enumerate(rows):
        row["step"] = step
    upper, _ = drawn(plot_schedule(rows)).axes
    first = [line for line in upper.lines if line.get_label() == "layer group 1"]
    assert len(first) == 1
    assert list(first[0].get_xdata()) == list(range(10, 20))


def test_schedule_of_one_step_and_without_momentum():
    """A single step is a visible dot; None is left out."""
    (row,) = schedule_rows(stages=("a",), steps=1)
    upper, _ = drawn(plot_schedule([row | {"momentum": None}])).axes
    assert upper.lines[0].get_marker() == "."


def history(count=4, **changes):
    rows = [
        {"stage": "head" if i < 3 else "finetune", "train_loss": 1 / (i + 1), "valid_loss": 0.8 / (i + 1)}
        | {"accuracy": 0.9 + 0.01 * i}
        for i in range(count)
    ]
    rows[-1] |= changes
    return rows


def test_history_shows_losses_and_accuracy():
    """Both losses on the left, accuracy on the right, epochs counted over all stages, the boundary between."""
    left, right = drawn(plot_history(history(), tta=0.96)).axes
    assert [line.get_label() for line in left.lines[:2]] == ["train", "validation"]
    np.testing.assert_allclose(values(left.lines[0]), [1, 1 / 2, 1 / 3, 1 / 4])
    np.testing.assert_allclose(values(left.lines[1]), [0.8, 0.4, 0.8 / 3, 0.2])
    assert list(left.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert list(left.lines[2].get_xdata()) == [3.5, 3.5]
    np.testing.assert_allclose(values(right.lines[0]), [0.9, 0.91, 0.92, 0.93])
    assert values(right.lines[1]).tolist() == [0.96, 0.96]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["with TTA 96.00 %"]
    assert texts(right) == ["head", "finetune"]


def test_history_of_one_epoch_and_with_gaps():
    """One epoch, no validation and NaN are drawn without a warning; without TTA there is no line for it."""
    left, right = drawn(plot_history(history(1, valid_loss=None), tta=None)).axes
    assert [line.get_label() for line in left.lines] == ["train"]
    assert len(right.lines) == 1
    drawn(plot_history(history(4, valid_loss=math.nan, accuracy=None), tta=0.5))
    nothing = history(1, train_loss=math.nan, valid_loss=math.nan, accuracy=None)
    assert texts(drawn(plot_history(nothing, tta=math.nan)).axes[1]) == []


def test_confusion_shows_counts_and_shares():
    """Few classes: counts where there are any, colours by the share of the row, a row without images included."""
    axes = drawn(plot_confusion([[8, 2, 0], [0, 5, 0], [0, 0, 0]], ["a", "b", "c"])).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.8, 0.2, 0], [0, 1, 0], [0, 0, 0]])
    assert sorted(texts(axes)) == ["2", "5", "8"]
    # A mistake in one image of a hundred is a tenth of the way to the darkest colour.
    assert axes.images[0].norm(0.01) == pytest.approx(0.1)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "actual")


def test_confusion_thins_the_names_of_many_classes():
    """A hundred classes: at most 40 names, at their own places, shortened if long, and no counts."""
    names = [f"a class with a long name {i}" for i in range(100)]
    axes = drawn(plot_confusion(np.eye(100, dtype=int), names)).axes[0]
    places = axes.get_yticks()
    assert 20 < len(places) <= 40
    assert all(len(label.get_text()) <= 18 for label in axes.get_yticklabels())
    short = drawn(plot_confusion(np.eye(100, dtype=int), [str(i) for i in range(100)])).axes[0]
    assert [label.get_text() for label in short.get_xticklabels()] == [str(int(place)) for place in short.get_xticks()]
    assert texts(axes) == []


def test_names_are_not_read_as_formulas():
    """A class called `$x` or `a_$b$` is written as it is."""
    axes = drawn(plot_confusion(np.eye(2, dtype=int), ["$x", "a_$b_$c$"])).axes[0]
    assert [label.get_parse_math() for label in axes.get_xticklabels()] == [False, False]


def test_figures_are_900_pixels_wide_and_not_pyplots():
    """Every figure has the width of the run folder's pictures, and pyplot, with its global state, is not loaded."""
    figures = [plot_lr_find([sweep()]), plot_schedule(schedule_rows()), plot_history(history())]
    figures.append(plot_confusion(np.eye(3, dtype=int), "abc"))
    assert {round(figure.get_figwidth() * 130) for figure in figures} == {897}
    code = "import sys, kbaseline.render.plots; print('matplotlib.pyplot' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_narrow_figures_put_their_panels_under_each_other():
    """On a phone's width no two panels share a row, and letters keep the size they have in a wide one."""
    curves = [sweep(), sweep()]
    for plot, arguments in ((plot_lr_find, curves), (plot_history, history()), (plot_schedule, schedule_rows())):
        narrow, wide = drawn(plot(arguments, width=4.0)), plot(arguments)
        assert narrow.get_figwidth() == 4
        upper, lower = (axes.get_position() for axes in narrow.axes)
        assert upper.y0 > lower.y1
        sizes = [figure.axes[0].yaxis.label.get_size() for figure in (narrow, wide)]
        assert sizes[0] == sizes[1]


def test_a_share_of_nothing_is_transparent():
    """The confusion matrix lets the paper through where there is nothing, light or dark, and is opaque at 100 %."""
    image = plot_confusion([[4, 0], [0, 4]], ["a", "b"]).axes[0].images[0]
    assert image.cmap(image.norm([0.0, 1.0]))[:, 3].tolist() == [0, 1]
