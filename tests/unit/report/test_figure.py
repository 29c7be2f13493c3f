import dataclasses
import sys
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from drs_ray.errors import ConfigError
from drs_ray.report.convergence import convergence
from drs_ray.report.figure import (
    PALETTE,
    PNG_KEY,
    SVG_KEY,
    certified_accuracy_figure,
    convergence_figure,
    figure_bytes,
    run_colours,
    save_figures,
    step_curve,
)
from drs_ray.results.reduce import RunResult, reduce_history
from tests.unit.counts.factories import MemoryStore, make_history, make_record, make_result, with_radii


def test_steps_are_exact() -> None:
    run = with_radii(make_result(5), [1.0, 1.0, 0.5, 2.0, 0.0])
    curve = step_curve(run, stop=2.5)
    assert curve.radii.tolist() == [0.0, 0.5, 1.0, 2.0, 2.5]
    assert curve.certified_accuracy.tolist() == [0.8, 0.8, 0.6, 0.2, 0.0]


def test_many_steps_are_simplified_and_never_raised() -> None:
    rng = np.random.default_rng(1)
    radius = np.where(rng.random(50_000) < 0.1, 0.0, rng.gamma(2.0, 0.4, 50_000).round(5))
    radius[:9_000] = 3.7  # many images at the largest radius that a budget allows
    run = with_radii(make_result(50_000, estimation=100), radius.tolist())
    curve = step_curve(run, stop=4.0)
    assert len(curve.radii) <= 1000  # two points each
    probes = np.r_[rng.uniform(0, 4, 2_000), curve.radii, np.nextafter(curve.radii, 9), np.unique(radius)[:500]]
    probes = probes[probes <= 4.0]
    drawn = curve.certified_accuracy[np.searchsorted(curve.radii, probes, side="left")]
    true = _certified_accuracy(run, probes)
    assert (drawn <= true).all()
    assert (true - drawn).max() <= 1 / 900


@pytest.mark.parametrize("images", [1, 7, 900])
def test_few_steps_are_all_kept(images: int) -> None:
    run = make_result(images)
    curve = step_curve(run, stop=9.0)
    assert set(run.radius[run.correct]) <= set(curve.radii)
    assert (curve.certified_accuracy == _certified_accuracy(run, curve.radii)).all()


def test_figure_says_what_it_shows() -> None:
    runs = [make_result(30, 1, uri="runs/rs"), make_result(30, 2, uri="runs/$drs_x$")]
    svg = figure_bytes(certified_accuracy_figure(runs), "svg").decode()
    assert ">l2 radius (pixel units, images in [0, 1])<" in svg
    assert f">rs: RS (K = 1), sigma 0.5, ACR {_acr(runs[0])}<" in svg
    assert f">$drs_x$: DRS (K = 2), sigma 0.5, ACR {_acr(runs[1])}<" in svg
    assert all(colour in svg for colour in PALETTE[:2])
    assert "stroke-dasharray" in svg
    (axes,) = certified_accuracy_figure(runs).axes
    assert len(axes.lines) == 4
    assert len(axes.collections) == 2
    for line in axes.lines:
        assert all(a >= b for a, b in pairwise(line.get_ydata()))


def test_a_comparison_is_dotted_and_guarantees_nothing() -> None:
    run = make_result(30, 2)
    (axes,) = certified_accuracy_figure([dataclasses.replace(run, variant="plain"), run]).axes
    assert len(axes.lines) == 3
    assert len(axes.collections) == 1
    dotted, solid = axes.lines[0], axes.lines[2]
    assert dotted.get_linestyle() != solid.get_linestyle() == "-"
    assert dotted.get_ydata().tolist() == solid.get_ydata().tolist()


def test_convergence_has_a_panel_per_run_and_a_line_per_number_of_samples() -> None:
    record = make_record(30, 1, estimation=800)
    history = make_history(record, [200, 400, 800])
    run = reduce_history(MemoryStore(), history, record, record.config.certificate)
    points = convergence(run, history)
    figure = convergence_figure([("$a_", points), ("b", points[1:]), ("c", points)])
    assert [len(axes.lines) for axes in figure.axes] == [3, 2, 3]
    first = figure.axes[0]
    assert [line.get_label() for line in first.lines] == ["n = 200", "n = 400", "n = 800"]
    assert first.lines[2].get_ydata().tolist() == step_curve(run, first.get_xlim()[1], 300).certified_accuracy.tolist()
    assert ">$a_<" in figure_bytes(figure, "svg").decode()


def test_figures_are_written_and_reproducible() -> None:
    runs = [make_result(30)]
    first, second = MemoryStore(), MemoryStore()
    assert save_figures(runs, first) == [SVG_KEY, PNG_KEY]
    save_figures(runs, second)
    assert first.objects == second.objects
    assert first.objects[PNG_KEY].startswith(b"\x89PNG")
    assert b"<svg" in first.objects[SVG_KEY]


@pytest.mark.parametrize("name", ["_hidden", "名前", "x" * 300, "a$b", "<script>"])
def test_any_name_can_be_drawn(name: str) -> None:
    run = dataclasses.replace(make_result(5), uri=f"runs/{name}")
    for kind in ("svg", "png"):
        assert figure_bytes(certified_accuracy_figure([run]), kind)


def test_nothing_certified_is_a_flat_line() -> None:
    run = with_radii(make_result(5), [0.0] * 5)
    assert figure_bytes(certified_accuracy_figure([run]), "svg")
    assert step_curve(run, 1.0).certified_accuracy.tolist() == [0.0, 0.0]


def test_more_runs_than_colours() -> None:
    assert run_colours(10) == [*PALETTE, *PALETTE[:2]]
    runs = [make_result(5, seed=seed, uri=f"runs/{seed}") for seed in range(10)]
    assert len(certified_accuracy_figure(runs).axes[0].lines) == 20


def test_matplotlib_missing_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"install drs-ray\[report\]"):
        certified_accuracy_figure([make_result(5)])


def _certified_accuracy(run: RunResult, radii: NDArray[np.float64]) -> NDArray[np.float64]:
    """The definition, one radius at a time."""
    return np.array([np.mean(run.correct & (run.radius >= radius)) for radius in radii])


def _acr(run: RunResult) -> str:
    return f"{np.floor(run.average_certified_radius * 1000) / 1000:.3f}"
