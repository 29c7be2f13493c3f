"""The figure: certified accuracy against radius, as exact steps with their bands, for one or several runs."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from drs_ray.certificates.curve import Curve, certified_accuracy_curve
from drs_ray.certificates.radius import Floats
from drs_ray.errors import ConfigError
from drs_ray.published.imported_run import ReportedRun
from drs_ray.report.convergence import AtSamples
from drs_ray.report.summary import Certified, RunSummary, summarise_side_by_side
from drs_ray.storage import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

SVG_KEY = "certified_accuracy.svg"
PNG_KEY = "certified_accuracy.png"

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a06a00", "#56b4e9", "#6a3d9a", "#6e7781")
"""Line colours on white, in order: Okabe and Ito's colour-blind-safe set (yellow and orange darkened), violet, grey."""
INK, GRID, PAPER = "#1f2328", "#d8dee4", "#ffffff"
"""Text and axes, grid lines, background. No palette colour: the HTML report recolours all of them by name."""

_LEVELS = 900  # steps kept per curve: one is 1/3 typographic point high; the path has 1,800 vertices
_FEWER_LEVELS = 300  # steps kept in the small panels
_PNG_DPI = 200
_STYLE = {
    "svg.fonttype": "none",  # text, not paths: small, searchable, in the page's font
    "svg.hashsalt": "drs-ray",  # the same runs give the same bytes
    "path.simplify": False,  # simplification may raise a step by a fraction of a pixel
}


def certified_accuracy_figure(results: Sequence[ReportedRun], *, legend: bool = True) -> Figure:
    """Certified accuracy against radius for each run: steps, shaded pointwise 95 % intervals, dashed guaranteed share.

    Args:
        results: at least one run.
        legend: False if the page around the figure has one.

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
    stop = right_end(results)
    handles = [
        draw_run(axes, result, stop, colour) for result, colour in zip(results, run_colours(len(results)), strict=True)
    ]
    _dress(axes, stop)
    if results[0].progress is not None:
        axes.set_title(results[0].progress.text, loc="left", color=INK, fontsize=11)
    elif summaries[0].common_text:
        axes.set_title(summaries[0].common_text, loc="left", color=INK, fontsize=11)
    if legend:
        _add_legend(figure, handles, summaries)
    return figure


def convergence_figure(convergence: Sequence[tuple[str, Sequence[AtSamples]]]) -> Figure:
    """Certified accuracy against radius at fewer samples, one panel per run; the palest line has the fewest samples.

    Args:
        convergence: name and convergence of at least one run.
    """
    from matplotlib.figure import Figure

    panels = len(convergence)
    columns = min(panels, 2)
    rows = -(-panels // columns)
    figure = Figure(figsize=(8.4, 3.4 * rows), layout="constrained", facecolor=PAPER)
    stop = right_end(point for _, points in convergence for point in points)
    for index, (name, points) in enumerate(convergence):
        axes = figure.add_subplot(rows, columns, index + 1)
        for position, point in enumerate(points):
            curve = step_curve(point, stop, _FEWER_LEVELS)
            axes.step(
                curve.radii,
                curve.certified_accuracy,
                where="pre",
                color=INK,
                alpha=1 - 0.75 * (len(points) - 1 - position) / len(points),
                linewidth=1.4,
                label=f"n = {point.samples:,}",
            )
        _dress(axes, stop, f"panel-{index}-")
        title = axes.set_title("", loc="left", color=INK, fontsize=10)
        title.set_parse_math(False)
        title.set_text(_short(name))
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as `svg` or `png`; the same figure gives the same bytes."""
    import matplotlib as mpl

    sink = io.BytesIO()
    no_date = {"Date": None} if kind == "svg" else {}
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the font may lack characters of run names
        figure.savefig(sink, format=kind, dpi=_PNG_DPI, metadata=no_date)
    return sink.getvalue()


def save_figures(results: Sequence[ReportedRun], target: Store) -> list[str]:
    """Write certified_accuracy.svg and .png to the store; returns their keys.

    Raises:
        ConfigError: see `certified_accuracy_figure`.
        StoreError: `target` cannot be written.
    """
    figure = certified_accuracy_figure(results)
    target.put(SVG_KEY, figure_bytes(figure, "svg"))
    target.put(PNG_KEY, figure_bytes(figure, "png"))
    return [SVG_KEY, PNG_KEY]


def run_colours(runs: int) -> list[str]:
    """A colour for each run; the palette is repeated for more runs."""
    return list(islice(cycle(PALETTE), runs))


def step_curve(certified: Certified, stop: float, levels: int = _LEVELS, planned: int | None = None) -> Curve:
    """Certified accuracy at the radii where it steps down.

    Point i is the value on (radii[i - 1], radii[i]]. If there are more than `levels` steps, steps within 1 / levels of
    each other are merged. A merged step ends at the largest of their radii with the smallest of their values, so that
    the drawn curve is nowhere above the true one.

    Args:
        certified: the run, or its images at fewer samples.
        stop: end of the line, pixel units, not below the largest radius.
        levels: largest number of steps.
        planned: see `certified_accuracy_curve`.
    """
    ordered = np.sort(certified.radius[certified.correct])
    steps = np.unique(ordered)
    reach = len(ordered) - np.searchsorted(ordered, steps, side="left")
    level = reach * levels // len(certified.radius)
    last_of_level = np.r_[level[1:] != level[:-1], True][: len(level)]
    grid: Floats = np.unique(np.r_[0.0, steps[last_of_level], stop])
    failing = certified.failure_probability
    return certified_accuracy_curve(grid, certified.radius, certified.correct, failing, planned=planned)


def right_end(shown: Iterable[Certified]) -> float:
    """End of the axis of radii, pixel units: a little beyond the largest radius."""
    largest = max(float(np.max(one.radius, where=one.correct, initial=0.0)) for one in shown)
    return 1.04 * largest if largest > 0 else 1.0


def draw_run(axes: Axes, result: ReportedRun, stop: float, colour: str) -> Any:
    """Draw a run's `step_curve`, or, for a log of predictions, its accuracy as a point.

    Returns:
        The line, for a legend.
    """
    if not result.has_radii:
        (point,) = axes.plot([0.0], [result.accuracy], "o", color=colour, clip_on=False, zorder=5)
        return point
    curve = step_curve(result, stop, planned=result.planned)
    return draw_curve(axes, curve, colour, comparison=bool(result.variant))


def draw_curve(axes: Axes, curve: Curve, colour: str, *, comparison: bool) -> Any:
    """Draw a `step_curve` with its band and its guaranteed share, or, for a comparison, only a dotted line.

    Returns:
        The line, for a legend.
    """
    if comparison:  # no band and no guarantee, because these are not the run's certificates
        (line,) = axes.step(
            curve.radii, curve.certified_accuracy, where="pre", color=colour, linewidth=1.8, linestyle=(0, (1, 1.2))
        )
        return line
    axes.fill_between(curve.radii, curve.ci_low, curve.ci_high, step="pre", color=colour, alpha=0.15, linewidth=0)
    axes.step(
        curve.radii, curve.guaranteed_low, where="pre", color=colour, linewidth=1.1, linestyle=(0, (4, 2)), alpha=0.9
    )
    (line,) = axes.step(
        curve.radii, curve.certified_accuracy, where="pre", color=colour, linewidth=1.8, solid_joinstyle="miter"
    )
    return line


def write_labels(legend: Legend, labels: Sequence[str]) -> None:
    """Write run names literally: as labels matplotlib would hide "_name" and take "$" as the start of a formula."""
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def _dress(axes: Axes, stop: float, prefix: str = "") -> None:
    axes.set_xlim(0, stop)
    axes.set_ylim(0, 1)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_xlabel("l2 radius (pixel units, images in [0, 1])", color=INK, gid=f"{prefix}x-label")
    axes.set_ylabel("certified accuracy (share of all images)", color=INK, gid=f"{prefix}y-label")
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
    blank = ["run"] * len(labels)  # written below
    legend = figure.legend(
        [*handles, *keys], blank, loc="outside lower left", frameon=False, fontsize=9, labelcolor=INK
    )
    write_labels(legend, labels)


def _label(run: RunSummary) -> str:
    return f"{_short(run.name)}: {run.method}, sigma {run.sigma_text}, ACR {run.acr_text}"


def _short(name: str) -> str:
    return name if len(name) <= 40 else name[:39] + "…"
