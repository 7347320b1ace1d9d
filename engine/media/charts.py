"""Charts of a training run with matplotlib, which is imported only when a chart is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..contract.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOSS, _RATE, _HELD, _INK, _GRID = "#2563eb", "#d97706", "#059669", "#1f2937", "#e5e7eb"


def smooth(values: Sequence[float], *, share: float = 0.05) -> list[float]:
    """Exponential moving average over about `share` of the values (three at least), without the start's bias.

    Values that are not finite are passed over: the average keeps what it had.
    """
    decay = 1 - 1 / max(len(values) * share, 3)
    total = weight = 0.0
    averages = []
    for value in values:
        if math.isfinite(value):
            total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        averages.append(total / weight if weight else math.nan)
    return averages


def loss_curve(
    steps: Sequence[int],
    losses: Sequence[float],
    path: str | Path,
    *,
    smoothed: bool = True,
    title: str = "Training loss",
    lr: Sequence[float] | None = None,
    validation: Sequence[tuple[int, float]] = (),
) -> Path:
    """Draw the loss over the steps as a PNG: each step faint, the moving average bold; `lr` on an axis of its own.

    `losses` and `lr` have one value a step, `validation` (step, loss) where it was measured. Returns the path. Raises
    DiskError when it cannot be written.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure()
    if smoothed:
        axes.plot(steps, losses, color=_LOSS, alpha=0.22, linewidth=1.0, label="each step")
        axes.plot(steps, smooth(losses), color=_LOSS, linewidth=2.2, label="moving average")
    else:
        axes.plot(steps, losses, color=_LOSS, linewidth=1.4, label="each step")
    if validation:
        axes.plot(
            *zip(*validation, strict=True), color=_HELD, linewidth=1.8, marker="o", markersize=4, label="validation"
        )
    handles = list(axes.lines)
    if lr is not None:
        rate_axes = axes.twinx()
        handles += rate_axes.plot(
            steps, lr, color=_RATE, linewidth=1.0, alpha=0.8, linestyle=(0, (5, 2)), label="learning rate"
        )
        rate_axes.set_ylabel("learning rate", color=_RATE)
        rate_axes.tick_params(axis="y", colors=_RATE, length=0)
        rate_axes.set_ylim(bottom=0)
        rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
        for spine in rate_axes.spines.values():
            spine.set_visible(False)
    _style(axes, title, x="step", y="loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.set_ylim(*_limits([*losses, *(loss for _, loss in validation)]))
    axes.margins(x=0.01)
    axes.legend(handles=handles, frameon=False, loc="upper right", labelcolor=_INK)
    return _saved(figure, path)


@dataclass(frozen=True, kw_only=True)
class Course:
    """One training in a chart of several: the loss of each step from 1 on, and points (step, loss) of two kinds."""

    label: str
    losses: Sequence[float]
    average: Sequence[tuple[int, float]]
    measured: Sequence[tuple[int, float]]


def courses_chart(courses: Sequence[Course], path: str | Path, *, title: str, average: str, measured: str) -> Path:
    """Draw several trainings over the same steps as a PNG: steps faint, averages bold, what was measured as dots.

    `average` and `measured` say in words what these points are. Returns the path. Raises DiskError when it cannot be
    written.
    """
    from matplotlib.lines import Line2D

    figure, axes = _figure()
    for course, colour in zip(courses, (_LOSS, _RATE, _HELD), strict=False):
        axes.plot(range(1, len(course.losses) + 1), course.losses, color=colour, alpha=0.18, linewidth=1.0)
        axes.plot(*zip(*course.average, strict=True), color=colour, linewidth=2.4)
        axes.plot(
            *zip(*course.measured, strict=True), color=colour, linewidth=0, marker="o", markersize=5.5, mec="white"
        )
        axes.annotate(
            course.label, course.average[-1], (0, 10), textcoords="offset points", ha="right", va="bottom",
            color=colour, fontweight="bold", bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1.5},
        )  # fmt: skip
    kinds = [
        Line2D([], [], color=_INK, linewidth=2.4, label=average),
        Line2D([], [], color=_INK, linewidth=0, marker="o", markersize=5.5, label=measured),
        Line2D([], [], color=_INK, linewidth=1.0, alpha=0.3, label="each step"),
    ]
    _style(axes, title, x="step", y="loss")
    axes.set_ylim(0, _limits([loss for course in courses for loss in course.losses])[1])
    axes.margins(x=0.01)
    figure.legend(handles=kinds, loc="outside lower center", ncols=len(kinds), frameon=False, labelcolor=_INK)
    return _saved(figure, path)


def density_chart(counts: Sequence[int], weights: Sequence[float], path: str | Path, *, title: str) -> Path:
    """Draw as a PNG how often each range of timesteps 0..1000 is drawn, and its loss weight on an axis of its own.

    The ranges are equal parts. Returns the path. Raises DiskError when it cannot be written.
    """
    figure, axes = _figure()
    width = 1000 / len(counts)
    middles = [(number + 0.5) * width for number in range(len(counts))]
    total = sum(counts) or 1
    axes.bar(middles, [100 * count / total for count in counts], width=0.92 * width, color=_LOSS)
    weight_axes = axes.twinx()
    weight_axes.plot(middles, weights, color=_RATE, linewidth=1.8, label="loss weight")
    weight_axes.set_ylim(bottom=0)
    weight_axes.set_ylabel("loss weight", color=_RATE)
    weight_axes.tick_params(axis="y", colors=_RATE, length=0)
    _style(axes, title, x="timestep (0 clean, 1000 noise)", y="% of the draws")
    axes.set_xlim(0, 1000)
    for spine in (*axes.spines.values(), *weight_axes.spines.values()):
        spine.set_visible(False)
    return _saved(figure, path)


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _style(axes: Axes, title: str, *, x: str, y: str) -> None:
    """Title, labels of the axes, horizontal grid lines behind the data, and no frame but the bottom line."""
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=_INK)
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def _saved(figure: Figure, path: str | Path) -> Path:
    with whole_file(Path(path)) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)


def _limits(losses: Sequence[float]) -> tuple[float, float]:
    """From just below the lowest loss to just above its 99.5th percentile: one spike must not flatten the rest."""
    finite = sorted(value for value in losses if math.isfinite(value))
    if not finite:
        return 0.0, 1.0
    low, high = finite[0], finite[min(int(len(finite) * 0.995), len(finite) - 1)]
    air = (high - low) * 0.08 or max(abs(high) * 0.1, 1e-6)
    return (max(low - air, 0.0) if low >= 0 else low - air), high + air
