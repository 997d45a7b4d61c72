"""The epochs of one or several fits: rows that show themselves as a line of text or as a plot."""

import math
from typing import TYPE_CHECKING

from kbaseline.console.format import clock, percent
from kbaseline.render.notebook import Table, fragment, paragraphs

if TYPE_CHECKING:
    from kbaseline.render.plots import Plot


class History(Table):
    """One row per epoch; see `StageTable.rows` for its keys. A list that shows itself in one line, not as its rows.

    >>> from kbaseline.training.history import History
    >>> row = {"stage": "head", "epoch": 1, "train_loss": 0.4, "valid_loss": 0.2, "accuracy": 0.95, "seconds": 7.0}
    >>> history = History([row, {**row, "epoch": 2, "accuracy": 0.94}])
    >>> history
    History: 2 epochs (head 2), accuracy 94.00 %, best 95.00 %, valid_loss 0.2000, 00:14
    >>> history[0]["accuracy"], [type(axes).__name__ for axes in history.plot().axes]
    (0.95, ['Axes', 'Axes'])
    """

    def plot(self, tta: float | None = None) -> "Plot":
        """Plots loss and accuracy by epoch; a Matplotlib figure.

        Args:
            tta: accuracy with test-time augmentation to mark, 0 to 1.
        """
        from kbaseline.render.plots import plot_history

        return plot_history(self, tta)

    def __repr__(self) -> str:
        if not self:
            return "History: no epochs yet"
        stages = [str(row["stage"]) for row in self]
        counts = [f"{stage} {stages.count(stage)}" for stage in dict.fromkeys(stages)]
        shown = ", ".join(counts if len(counts) <= 4 else [*counts[:3], f"{len(counts) - 3} more"])
        accuracies = [row["accuracy"] for row in self if row.get("accuracy") is not None]
        known = [value for value in accuracies if not math.isnan(value)]
        loss = self[-1].get("valid_loss")
        parts = [f"History: {len(self)} {'epoch' if len(self) == 1 else 'epochs'} ({shown[:200]})"]
        parts += [f"accuracy {percent(accuracies[-1])}"] if accuracies else []
        parts += [f"best {percent(max(known))}"] if known and max(known) > accuracies[-1] else []
        parts += [] if loss is None else [f"valid_loss {loss:.4f}"]
        return ", ".join([*parts, clock(sum(row.get("seconds") or 0.0 for row in self))])

    def _repr_html_(self) -> str:
        chart = self.plot()._repr_mimebundle_()["text/html"] if self else ""
        return fragment(paragraphs(repr(self))) + chart
