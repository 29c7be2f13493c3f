"""Plots on the caller's axes: the numbers of the runs, every run named, nothing drawn that is not so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot

import drs_ray
from drs_ray.errors import ConfigError
from drs_ray.published.imported_run import import_log
from drs_ray.report.distributions import radius_edges
from drs_ray.report.export import export
from tests.unit.counts.factories import MemoryStore, make_result

PLOTS = (drs_ray.plot_certified_accuracy, drs_ray.plot_radius_histogram)


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    mpl.use("agg")
    yield
    pyplot.close("all")


def imported_beside(run):
    stated = {"dataset": "mnist5k", "sigmas": [0.5], "estimation": 1000}
    return import_log(MemoryStore("runs/cohen"), export([run], "tsv").encode(), "log.tsv", **stated)


@pytest.mark.parametrize("plot", PLOTS)
def test_it_draws_where_it_is_told(plot) -> None:
    figure, (left, right) = pyplot.subplots(1, 2)
    assert plot([make_result()], ax=right) is right
    assert not left.has_data()
    assert right.has_data()
    assert plot([make_result()]).figure is not figure


def test_the_curve_is_the_runs() -> None:
    run = make_result(60)
    axes = drs_ray.plot_certified_accuracy([run])
    curve, guaranteed = sorted(axes.get_lines(), key=lambda line: -np.max(line.get_ydata()))
    for radius, accuracy, low in zip(*(run.curve[name].to_pylist() for name in (
        "radius", "certified_accuracy", "guaranteed_low")), strict=True):  # fmt: skip
        at = np.searchsorted(curve.get_xdata(), radius)  # the value holds up to the next step
        assert curve.get_ydata()[at] == accuracy
        assert guaranteed.get_ydata()[at] == low
    assert axes.get_xlim()[1] > run.radius.max()
    assert axes.get_ylim() == (0, 1)


def test_the_histogram_is_the_runs() -> None:
    run = make_result(60)
    axes = drs_ray.plot_radius_histogram([run])
    (outline,) = axes.patches
    counts, _ = np.histogram(run.radius[run.correct], radius_edges([run]))
    assert outline.get_data().values.tolist() == counts.tolist()
    abstained = sum(prediction == -1 for prediction in run.certificates["prediction"].to_pylist())
    assert axes.get_legend().get_texts()[0].get_text() == f"demo ({abstained} abstain)"


@pytest.mark.parametrize("plot", PLOTS)
def test_names_are_written_as_they_are(plot) -> None:
    runs = [make_result(uri="runs/_a"), make_result(uri="runs/b$c$", seed=1), imported_beside(make_result())]
    texts = [text.get_text() for text in plot(runs).get_legend().get_texts()]
    assert [text.rpartition(" (")[0] for text in texts] == ["_a", "b$c$", "cohen, imported, not verified"]


def test_an_imported_run_is_a_dotted_line_without_promises() -> None:
    ours = make_result()
    axes = drs_ray.plot_certified_accuracy([imported_beside(ours)])
    (line,) = axes.get_lines()
    assert line.get_linestyle() != "-"
    assert not axes.collections
    both = drs_ray.plot_certified_accuracy([ours, imported_beside(ours)])
    assert len(both.get_lines()) == 3
    assert len(both.collections) == 1


@pytest.mark.parametrize("plot", PLOTS)
def test_runs_that_cannot_be_compared_are_refused(plot) -> None:
    with pytest.raises(ConfigError, match="no runs to show"):
        plot([])
    with pytest.raises(ConfigError, match="certified on different test sets"):
        plot([make_result(5), make_result(6)])
    assert not pyplot.get_fignums()


@pytest.mark.parametrize("plot", PLOTS)
def test_without_matplotlib_one_line_says_what_to_install(plot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"plots need matplotlib: install drs-ray\[report\]"):
        plot([make_result()])


def test_naming_the_functions_loads_no_matplotlib() -> None:
    code = "import sys, drs_ray; drs_ray.plot_certified_accuracy; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
