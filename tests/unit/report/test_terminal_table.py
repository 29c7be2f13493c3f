import dataclasses
import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from drs_ray.config import CertificateConfig
from drs_ray.errors import ConfigError
from drs_ray.report.columns import Columns, columns_of
from drs_ray.report.terminal_table import render_convergence, render_table
from drs_ray.results.reduce import RunResult, reduce_history
from tests.unit.counts.factories import MemoryStore, make_history, make_record, make_result, with_radii


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


@pytest.mark.parametrize(("runs", "width"), [(3, 80), (4, 100)])
def test_comparisons_fit_one_line_per_radius(runs: int, width: int) -> None:
    best = [make_result(200, 1, uri="runs/rs"), make_result(200, 2, uri="runs/drs")]
    plain = [dataclasses.replace(run, variant="p_A Bonferroni") for run in best]
    shown = [plain[0], best[0], plain[1], best[1]][-runs:]
    lines = _printed(shown, width).splitlines()
    assert max(len(line) for line in lines) <= width
    for radius in ("0", "0.25", "0.5", "0.75", "1"):
        (row,) = (line for line in lines if line.split()[:1] == [radius] and "[" in line)
        assert row.count("[") == row.count("]") == runs
    (failed,) = (line for line in lines if line.split()[:1] == ["failed"])
    assert failed.count("<= 2 images") == runs  # binom.ppf(0.99, 200, 0.001)
    assert "comparison" in "\n".join(lines)


def test_adaptive_runs_say_what_they_saved() -> None:
    record = make_record(20, 1, estimation=800)
    record = record.model_copy(update={"config": record.config.updated("budget", stages=2)})
    history = make_history(record, [400, 800])
    run = reduce_history(MemoryStore(), history, record, record.config.certificate)
    assert f"{run.samples:,} (1.0 times fewer)" in _printed([run])
    assert "n = 100 + up to 800" in _printed([run])
    assert "times fewer" not in _printed([make_result(20)])


def test_convergence_has_a_row_per_number_of_samples() -> None:
    columns = Columns()
    for name, ends in (("rs", [200, 400, 800]), ("drs", [800])):
        record = make_record(20, 1, estimation=800, uri=f"runs/{name}")
        history = make_history(record, ends)
        run = reduce_history(MemoryStore(record.config.output.uri), history, record, record.config.certificate)
        columns += columns_of(run, history, compare_rules=True)
    out = io.StringIO()
    Console(file=out, width=80).print(render_convergence(columns))
    lines = {line.split()[0]: line for line in out.getvalue().splitlines() if line.split()}
    assert "not certificates" in out.getvalue()
    assert lines["n"].split() == ["n", "rs", "drs"]
    assert [lines[samples].count("ACR") for samples in ("200", "400", "800")] == [1, 1, 2]
    assert columns.convergence[0][1][0].acr_text in lines["200"]


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


def _printed(runs: Sequence[RunResult], width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(render_table(runs))
    return out.getvalue()


def test_a_rule_chosen_after_the_run_began_is_said() -> None:
    run = make_result(20)
    later = dataclasses.replace(run, record=run.record.model_copy(update={"stopping": CertificateConfig(alpha=0.05)}))
    assert not later.as_planned
    assert "Rule or alpha chosen after the run began: demo." in " ".join(_printed([later]).split())
    kept = dataclasses.replace(
        run,
        record=run.record.model_copy(
            update={"stopping": CertificateConfig(rivals=False, confidence="bonferroni", pooled=False)}
        ),
    )
    assert kept.as_planned
    assert "chosen after" not in _printed([kept])
