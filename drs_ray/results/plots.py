"""Plots for notebooks and papers, on axes of the caller's: certified accuracy, and how radii are spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from drs_ray.errors import ConfigError
from drs_ray.results.figure import run_colours, step_curve
from drs_ray.results.imported import Shown
from drs_ray.results.readouts import radius_edges, radius_histogram
from drs_ray.results.summary import summarise_side_by_side

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_certified_accuracy(runs: Sequence[Shown], ax: Axes | None = None) -> Axes:
    """Certified accuracy against radius: exact steps, the pointwise 95 % interval over images shaded, and dashed what
    holds for these images with 99 % probability over the noise. An imported run is a dotted line alone.

    Args:
        runs: at least one run over one test set, of `drs_ray.read_run`.
        ax: where to draw; None: axes of a new figure.

    Raises:
        ConfigError: no runs, runs over different test sets, or matplotlib is missing.
    """
    summaries = summarise_side_by_side(runs)
    axes = _axes(ax)
    largest = max((float(run.radius[run.correct].max(initial=0.0)) for run in runs), default=0.0)
    stop = 1.04 * largest if largest > 0 else 1.0
    for run, summary, colour in zip(runs, summaries, run_colours(len(runs)), strict=True):
        curve = step_curve(run, stop)
        label = f"{summary.name} (ACR {summary.acr_text})"
        if summary.variant:
            axes.step(curve.radii, curve.certified_accuracy, where="pre", color=colour, linestyle=":", label=label)
            continue
        axes.step(curve.radii, curve.certified_accuracy, where="pre", color=colour, label=label)
        axes.fill_between(curve.radii, curve.ci_low, curve.ci_high, step="pre", color=colour, alpha=0.15, linewidth=0)
        axes.step(curve.radii, curve.guaranteed_low, where="pre", color=colour, linestyle="--", linewidth=0.8)
    axes.set_xlim(0, stop)
    axes.set_ylim(0, 1)
    axes.set_xlabel("l2 radius (pixel units)")
    axes.set_ylabel("certified accuracy")
    axes.legend()
    return axes


def plot_radius_histogram(runs: Sequence[Shown], ax: Axes | None = None) -> Axes:
    """How many images, predicted right, have which certified radius: one outline per run, over the same bins.

    Args:
        runs: at least one run over one test set, of `drs_ray.read_run`.
        ax: where to draw; None: axes of a new figure.

    Raises:
        ConfigError: no runs, runs over different test sets, or matplotlib is missing.
    """
    summaries = summarise_side_by_side(runs)
    axes = _axes(ax)
    edges = radius_edges(runs)
    for run, summary, colour in zip(runs, summaries, run_colours(len(runs)), strict=True):
        found = radius_histogram(run, edges)
        axes.stairs(
            found.correct.counts,
            found.correct.edges,
            color=colour,
            linestyle=":" if summary.variant else "-",
            label=f"{summary.name} ({found.abstained:,} abstain)",
        )
    axes.set_xlim(0, edges[-1])
    axes.set_xlabel("certified l2 radius (pixel units)")
    axes.set_ylabel("images predicted right")
    axes.legend()
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
