"""Plots for notebooks and papers, on the caller's axes: certified accuracy, and the distribution of radii."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from drs_ray import arguments
from drs_ray.arguments import checked, optional
from drs_ray.errors import ConfigError
from drs_ray.published.imported_run import ReportedRun
from drs_ray.report.distributions import radius_edges, radius_histogram
from drs_ray.report.figure import draw_run, right_end, run_colours, write_labels
from drs_ray.report.summary import summarise_side_by_side

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES = optional(arguments.instance_of("matplotlib.axes:Axes", "matplotlib axes"))


@checked(runs=arguments.runs, ax=_AXES)
def plot_certified_accuracy(runs: Sequence[ReportedRun], ax: Axes | None = None) -> Axes:
    """Certified accuracy against radius: exact steps, the pointwise 95 % interval over images (shaded), and the share
    of these images guaranteed with 99 % probability over the noise (dashed). An imported run is only a dotted line, a
    log of predictions a point at radius 0.

    Args:
        runs: at least one run over one test set, from `drs_ray.read_run`.
        ax: axes to draw on; None: axes of a new figure.

    Raises:
        ConfigError: no runs, runs over different test sets, or matplotlib is missing.
    """
    summaries = summarise_side_by_side(runs)
    axes = _axes(ax)
    stop = right_end(runs)
    lines = [draw_run(axes, run, stop, colour) for run, colour in zip(runs, run_colours(len(runs)), strict=True)]
    axes.set_xlim(0, stop)
    axes.set_ylim(0, 1)
    axes.set_xlabel("l2 radius (pixel units)")
    axes.set_ylabel("certified accuracy")
    write_labels(
        axes.legend(lines, ["run"] * len(lines)),
        [f"{summary.name} (ACR {summary.acr_text})" for summary in summaries],
    )
    return axes


@checked(runs=arguments.runs, ax=_AXES)
def plot_radius_histogram(runs: Sequence[ReportedRun], ax: Axes | None = None) -> Axes:
    """Histogram of the certified radii of correctly predicted images: one outline per run, over the same bins.

    Args:
        runs: at least one run over one test set, from `drs_ray.read_run`.
        ax: axes to draw on; None: axes of a new figure.

    Raises:
        ConfigError: no runs, runs over different test sets, or matplotlib is missing.
    """
    summaries = summarise_side_by_side(runs)
    axes = _axes(ax)
    edges = radius_edges(runs)
    found = [radius_histogram(run, edges) for run in runs]
    outlines = [
        axes.stairs(one.correct.counts, one.correct.edges, color=colour, linestyle=":" if run.variant else "-")
        for run, one, colour in zip(runs, found, run_colours(len(runs)), strict=True)
    ]
    axes.set_xlim(0, edges[-1])
    axes.set_xlabel("certified l2 radius (pixel units)")
    axes.set_ylabel("images predicted right")
    write_labels(
        axes.legend(outlines, ["run"] * len(outlines)),
        [f"{summary.name} ({one.abstained:,} abstain)" for summary, one in zip(summaries, found, strict=True)],
    )
    return axes


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigError("plots need matplotlib: install drs-ray[report]") from error
    axes: Axes = pyplot.subplots()[1]
    return axes
