"""The figure: certified accuracy against radius, as exact steps with their bands, for one or several runs."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from drs_ray.certificates.curve import Curve, certified_accuracy_curve
from drs_ray.certificates.radius import Floats
from drs_ray.errors import ConfigError
from drs_ray.results.reduce import RunResult
from drs_ray.results.store import Store
from drs_ray.results.summary import RunSummary, summarise_side_by_side

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SVG_KEY = "certified_accuracy.svg"
PNG_KEY = "certified_accuracy.png"

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a06a00", "#56b4e9")
"""Line colours on white, in order, from Okabe and Ito's colour-blind-safe set (its yellow and orange darkened)."""
INK, GRID, PAPER = "#1f2328", "#d8dee4", "#ffffff"
"""Text and axes, grid lines, background. No palette colour: the HTML report recolours all of them by name."""

_LEVELS = 900  # steps kept per curve: a third of a point of the figure's height, 1,800 points
_PNG_DPI = 200
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "drs-ray",  # the same runs give the same bytes
    "path.simplify": False,  # it may raise a step by a fraction of a pixel
}


def certified_accuracy_figure(results: Sequence[RunResult], *, legend: bool = True) -> Figure:
    """Certified accuracy against radius for each run: steps, shaded pointwise 95 % intervals, dashed guaranteed share.

    Args:
        results: at least one run.
        legend: False where the page around the figure has one.

    Raises:
        ConfigError: no runs, runs over different test sets, or matplotlib is missing.
    """
    summaries = summarise_side_by_side(results)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("figures need matplotlib: install drs-ray[report]") from error
    figure = Figure(figsize=(7.2, 4.6) if legend else (8.4, 4.7), layout="constrained", facecolor=PAPER)
    axes = figure.add_subplot()
    stop = _right_end(results)
    handles = [
        _draw(axes, step_curve(result, stop), colour)
        for result, colour in zip(results, run_colours(len(results)), strict=True)
    ]
    _dress(axes, stop)
    if legend:
        _add_legend(figure, handles, summaries)
    return figure


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as `svg` or `png`; the same figure gives the same bytes."""
    import matplotlib as mpl

    sink = io.BytesIO()
    no_date = {"Date": None} if kind == "svg" else {}
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a run's name in a script the font lacks
        figure.savefig(sink, format=kind, dpi=_PNG_DPI, metadata=no_date)
    return sink.getvalue()


def save_figures(results: Sequence[RunResult], target: Store) -> list[str]:
    """Write certified_accuracy.svg and .png to the store; returns their keys.

    Raises:
        ConfigError: see `certified_accuracy_figure`.
        StoreError: the place cannot be written.
    """
    figure = certified_accuracy_figure(results)
    target.put(SVG_KEY, figure_bytes(figure, "svg"))
    target.put(PNG_KEY, figure_bytes(figure, "png"))
    return [SVG_KEY, PNG_KEY]


def run_colours(runs: int) -> list[str]:
    """A colour for each run; the palette starts again after its last."""
    return list(islice(cycle(PALETTE), runs))


def step_curve(result: RunResult, stop: float, levels: int = _LEVELS) -> Curve:
    """The run's certified accuracy at the radii where it steps down, for lines that hold until the next of them.

    Point i is the value on (radii[i - 1], radii[i]]. Of more than `levels` steps, those within 1 / levels of each other
    become one at the largest of their radii, with the smallest of their values: the drawn curve is nowhere above the
    true one.

    Args:
        result: the run.
        stop: where the line ends, pixel units, not below the largest radius.
        levels: most steps to keep.
    """
    steps = np.unique(result.radius[result.correct])
    ordered = np.sort(result.radius[result.correct])
    certified = len(ordered) - np.searchsorted(ordered, steps, side="left")
    level = certified * levels // result.images
    last_of_level = np.r_[level[1:] != level[:-1], True][: len(level)]
    grid: Floats = np.unique(np.r_[0.0, steps[last_of_level], stop])
    return certified_accuracy_curve(grid, result.radius, result.correct, result.alpha)


def _right_end(results: Sequence[RunResult]) -> float:
    largest = max(float(np.max(result.radius, where=result.correct, initial=0.0)) for result in results)
    return 1.04 * largest if largest > 0 else 1.0


def _draw(axes: Axes, curve: Curve, colour: str) -> Any:
    axes.fill_between(curve.radii, curve.ci_low, curve.ci_high, step="pre", color=colour, alpha=0.15, linewidth=0)
    axes.step(
        curve.radii, curve.guaranteed_low, where="pre", color=colour, linewidth=1.1, linestyle=(0, (4, 2)), alpha=0.9
    )
    (line,) = axes.step(
        curve.radii, curve.certified_accuracy, where="pre", color=colour, linewidth=1.8, solid_joinstyle="miter"
    )
    return line


def _dress(axes: Axes, stop: float) -> None:
    axes.set_xlim(0, stop)
    axes.set_ylim(0, 1)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_xlabel("l2 radius (pixel units, images in [0, 1])", color=INK, gid="x-label")
    axes.set_ylabel("certified accuracy (share of all images)", color=INK, gid="y-label")
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def _add_legend(figure: Figure, handles: list[Any], summaries: Sequence[RunSummary]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    labels = [_label(run) for run in summaries]
    keys = [
        Patch(color=INK, alpha=0.15, linewidth=0),
        Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (4, 2))),
    ]
    labels += ["95 % interval over images, at each radius", "guaranteed for these images (99 % over the noise)"]
    blank = ["run"] * len(labels)  # set below: as labels, "_name" would be hidden and "$" start a formula
    legend = figure.legend([*handles, *keys], blank, loc="outside lower left", frameon=False, fontsize=9)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)
        text.set_color(INK)


def _label(run: RunSummary) -> str:
    name = run.name if len(run.name) <= 40 else run.name[:39] + "…"
    return f"{name}: {run.method}, sigma {run.sigma_text}, ACR {run.acr_text}"
