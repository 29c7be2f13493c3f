import dataclasses
import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from drs_ray.errors import ConfigError
from drs_ray.results.reduce import RunResult
from drs_ray.results.terminal import render_table
from tests.unit.results.factories import make_result, with_radii


def test_two_runs_fit_80_columns_one_line_per_radius() -> None:
    runs = [
        make_result(200, 1, sigma=1.0, uri="runs/demo-rs"),
        make_result(200, 2, sigma=0.7071067811865476, uri="runs/demo-drs", radii=(0.0, 0.25, 0.5, 1.0, 1.5)),
    ]
    lines = _printed([dataclasses.replace(runs[0], seconds=12.3), runs[1]]).splitlines()
    assert max(len(line) for line in lines) <= 80
    assert "mnist5k (test)" in lines[0]
    for radius in ("0", "0.25", "0.5", "0.75", "1", "1.5"):
        (row,) = (line for line in lines if line.split()[:1] == [radius] and ">=" in line)
        assert row.count(">=") == row.count("[") == 2
    text = "\n".join(lines)
    assert "DRS (K = 2), sigma 0.7071" in text
    assert "12.3 s" in text
    assert "not recorded" in text
    assert "\x1b" not in text


def test_figures_are_those_of_the_run() -> None:
    run = with_radii(make_result(100), [0.4996] * 57 + [0.0] * 43)
    lines = {line.split()[0]: line for line in _printed([run]).splitlines() if line.split()}
    assert lines["0.25"].split()[1] == "0.570"
    assert ">= 0.560" in lines["0.25"]  # binom.ppf(0.99, 100, 0.001) = 1 certificate may have failed
    assert lines["0.5"].split()[1] == "0.000"
    assert lines["ACR"].split()[1] == "0.284"
    assert "0.430 (43 images)" in lines["abstains"]


def test_names_are_text_not_markup() -> None:
    assert "[bold]x[red]" in _printed([dataclasses.replace(make_result(5), uri="runs/[bold]x[red]")])


def test_other_test_sets_are_refused() -> None:
    with pytest.raises(ConfigError, match="different test sets"):
        render_table([make_result(5), make_result(6, uri="runs/other")])


def _printed(runs: Sequence[RunResult]) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(render_table(runs))
    return out.getvalue()
