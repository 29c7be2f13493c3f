"""Exported runs: logs that the field's scripts read, csv with every number, tables that never round up."""

from __future__ import annotations

import io
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drs_ray.certificates.rounding import format_down
from drs_ray.errors import ConfigError
from drs_ray.published.imported_run import ImportedResult, ReportedRun, import_log, read_reported_run
from drs_ray.report.export import FORMATS, RADIUS_DIGITS, export, radii_down
from tests.unit.counts.factories import MemoryStore, make_result, with_radii

steady = settings(derandomize=True, deadline=None, database=None, max_examples=200)

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)


def analyze(log: str, radii: Any) -> list[float]:
    """As analyze.py of Cohen et al. 2019 does: pandas, tabs, and these two columns."""
    frame = pd.read_csv(io.StringIO(log), delimiter="\t")
    return [float((frame["correct"] & (frame["radius"] >= radius)).mean()) for radius in radii]


def imported(ours: ReportedRun) -> ImportedResult:
    store = MemoryStore("runs/theirs_50%")
    data = export([ours], "tsv").encode()
    import_log(store, data, "log.tsv", dataset="mnist5k", sigmas=[0.5], estimation=1000, radii=RADII)
    found = read_reported_run(store)
    assert isinstance(found, ImportedResult)
    return found


def test_the_fields_scripts_read_the_log() -> None:
    run = make_result(120)
    log = export([run], "tsv")
    assert log.splitlines()[0] == "idx\tlabel\tpredict\tradius\tcorrect\ttime"
    assert analyze(log, RADII) == run.curve["certified_accuracy"].to_pylist()
    frame = pd.read_csv(io.StringIO(log), delimiter="\t")
    table = run.certificates
    assert frame["idx"].tolist() == table["image_id"].to_pylist()
    assert frame["label"].tolist() == table["label"].to_pylist()
    assert frame["predict"].tolist() == table["prediction"].to_pylist()
    assert frame["correct"].tolist() == [int(correct) for correct in table["correct"].to_pylist()]
    off = table["radius"].to_numpy() - frame["radius"].to_numpy()
    assert ((off >= 0) & (off < 1.1e-6)).all()
    assert (frame["predict"] == -1).any()  # the run has both
    assert frame["time"].isna().all()  # nobody measured


def test_a_log_never_claims_what_was_not_computed() -> None:
    run = with_radii(make_result(3, radii=RADII), [0.5 - 1e-12, 0.5, 0.4999996])
    log = export([run], "tsv")
    assert [line.split("\t")[3] for line in log.splitlines()[1:]] == ["0.499999", "0.500000", "0.499999"]
    assert analyze(log, [0.5]) == [1 / 3] == [run.curve["certified_accuracy"][2].as_py()]


def test_time_is_the_runs_wall_time_over_its_images() -> None:
    log = export([replace(make_result(4), seconds=6.0)], "tsv")
    assert {line.split("\t")[5] for line in log.splitlines()[1:]} == {"0:00:01.500000"}
    assert pd.to_timedelta(pd.read_csv(io.StringIO(log), delimiter="\t")["time"]).sum().total_seconds() == 6.0
    killed = export([replace(make_result(4), seconds=6.0, all_timed=False)], "tsv")
    assert {line.split("\t")[5] for line in killed.splitlines()[1:]} == {"nan"}


def test_there_and_back() -> None:
    run = make_result(60)
    back = imported(run)
    for name in ("image_id", "label", "prediction", "correct", "alpha"):
        assert back.certificates[name].to_pylist() == run.certificates[name].to_pylist()
    assert (back.radius <= run.radius).all()
    assert (back.radius >= run.radius - 1.1e-6).all()
    assert back.curve["certified_accuracy"].to_pylist() == run.curve["certified_accuracy"].to_pylist()
    assert imported(back).certificates.equals(back.certificates)


def test_imported_radii_leave_as_they_came() -> None:
    log = "idx\tlabel\tpredict\tradius\tcorrect\n" + "".join(
        f"{step}\t1\t1\t{step / 1000:g}\t1\n" for step in range(1, 2000)
    )
    stated = {"dataset": "mnist5k", "sigmas": [0.5], "estimation": 100_000, "radii": (0.0, 0.3, 0.573, 1.0)}
    there = import_log(MemoryStore("runs/there"), log.encode(), "log.tsv", **stated)
    text = export([there], "tsv")
    assert [line.split("\t")[3] for line in text.splitlines()[1:]] == [f"{step / 1000:g}" for step in range(1, 2000)]
    back = import_log(MemoryStore("runs/back"), text.encode(), "log.tsv", **stated)
    assert back.radius.tolist() == there.radius.tolist()
    assert back.curve["certified_accuracy"].equals(there.curve["certified_accuracy"])
    assert analyze(text, [0.3, 0.573]) == there.curve["certified_accuracy"].to_pylist()[1:3]


@steady
@given(
    st.lists(
        st.floats(0, 9) | st.integers(0, 9_000_000).map(lambda steps: steps / 10**RADIUS_DIGITS) | st.floats(0, 1e300),
        min_size=1,
    )
)
def test_many_radii_are_rounded_down_as_one_is(radii: list[float]) -> None:
    values = np.array(radii)
    for value, text in zip(radii, radii_down(values), strict=True):
        assert text == format_down(value, RADIUS_DIGITS)
        assert Decimal(text) <= Decimal(value)


def test_radii_next_to_what_is_printed() -> None:
    whole = np.arange(1, 4000) / 10**RADIUS_DIGITS * 997
    for values in (whole, np.nextafter(whole, 0), np.nextafter(whole, 9)):
        assert radii_down(values) == [format_down(float(value), RADIUS_DIGITS) for value in values]


@pytest.mark.parametrize("sub_images", [1, 2])
def test_csv_has_every_number_in_full(sub_images: int) -> None:
    run = make_result(30, sub_images)
    frame = pd.read_csv(io.StringIO(export([run], "csv")))
    table = run.certificates
    for name in table.column_names:
        column = table[name].to_pylist()
        if isinstance(column[0], list):
            for k in range(sub_images):
                assert frame[f"{name}_{k}"].tolist() == [values[k] for values in column], name
        else:
            assert frame[name].tolist() == column, name
    lists = sum(isinstance(table[name][0].as_py(), list) for name in table.column_names)
    assert len(frame.columns) == len(table.column_names) + lists * (sub_images - 1)


def test_csv_of_an_imported_run() -> None:
    run = imported(make_result(5))
    frame = pd.read_csv(io.StringIO(export([run], "csv")))
    assert frame.columns.tolist() == run.certificates.column_names
    assert frame["radius"].tolist() == run.radius.tolist()


def test_a_markdown_table_of_several_runs() -> None:
    ours = make_result(40, uri="runs/a|b")
    lines = export([ours, imported(ours)], "markdown").splitlines()
    assert lines[0] == ("| run | sigma | n | alpha | r = 0 | r = 0.25 | r = 0.5 | r = 0.75 | r = 1 | ACR |")
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2].startswith(r"| a\|b | 0.5 | 100 + 1,000 | 0.001 | ")
    assert lines[3].startswith("| theirs_50%, imported, not verified | 0.5 | 100 + 1,000 | 0.001 | ")
    shown = [float(cell) for cell in lines[2].replace(r"\|", "").split("|")[5:-1]]
    exact = [*ours.curve["certified_accuracy"].to_pylist(), ours.average_certified_radius]
    assert all(below <= value < below + 1.1e-3 for below, value in zip(shown, exact, strict=True))
    assert lines[5] == (
        "Certified accuracy at l2 radius r (pixel units, images in [0, 1]) on 40 images of mnist5k (test); n: "
        "selection + estimation samples per image and sub-image. Rounded down. Imported rows are as "
        "published and stated, not verified."
    )


TEX_OF = {
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "#": r"\#",
    "%": r"\%",
    "&": r"\&",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "$": r"\$",
}


def test_a_latex_table() -> None:
    ours = make_result(40, uri=r"runs/100%_&#${}~^\x|<y>")
    text = export([ours, imported(ours)], "latex", [0.25, 0.5])
    lines = text.splitlines()
    assert lines[0].startswith("% Certified accuracy at l2 radius r")
    assert lines[1] == r"\begin{tabular}{lrrrrrrr}"
    assert lines[3] == r"run & sigma & n & alpha & $r = 0$ & $r = 0.25$ & $r = 0.5$ & ACR \\"
    name = r"100\%\_\&\#\$\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}x\textbar{}\textless{}y\textgreater{}"
    assert lines[5].startswith(name + r" & 0.5 & 100 + 1,000 & 0.001 & ")
    assert lines[6].startswith(r"theirs\_50\%, imported, not verified & ")
    assert all(line.count(" & ") == 7 and line.endswith(r" \\") for line in (lines[3], *lines[5:7]))
    assert [line for line in lines if line.startswith("\\") and "rule" in line] == [
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
    ]
    assert lines[-1] == r"\end{tabular}"


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("[a]", "{[}a] & "),  # after \\\\ and \\midrule, [ begins an argument
        ("*a", "{*}a & "),
        ("a\n\nb\tc", "a b c & "),  # an empty line would end the paragraph
        ("|<>#%&_{}~^\\$", "".join(TEX_OF.values()) + " & "),
    ],
)
def test_a_name_is_text_to_latex(name: str, cell: str) -> None:
    lines = export([make_result(40, uri=f"runs/{name}")], "latex").splitlines()
    assert lines[5].startswith(cell)
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("runs", "kind", "radii", "message"),
    [
        (1, "xlsx", None, "format must be one of tsv, csv, markdown, latex, got 'xlsx'"),
        (2, "tsv", None, "tsv holds the images of one run, got 2; name one, or use markdown or latex"),
        (0, "csv", None, "csv holds the images of one run, got 0"),
        (0, "latex", None, "no runs to show"),
        (1, "tsv", [0.5], "radii are columns of markdown and latex tables, tsv has every image's own; leave them out"),
        (1, "latex", [], "radii must be finite, >= 0 and increasing, for example 0,0.5,1; got []"),
        (1, "latex", [0.5, 0.5], "radii must be finite, >= 0 and increasing"),
        (1, "markdown", [-0.5, 0.5], "radii must be finite, >= 0 and increasing"),
        (1, "markdown", [0.5, float("inf")], "radii must be finite, >= 0 and increasing"),
        (1, "markdown", [float("nan")], "radii must be finite, >= 0 and increasing"),
    ],
)
def test_what_cannot_be_exported(runs: int, kind: str, radii: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        export([make_result(5)] * runs, kind, radii)
    assert str(caught.value).startswith(message)


def test_tables_of_different_test_sets_are_refused() -> None:
    assert set(FORMATS) == {"tsv", "csv", "markdown", "latex"}
    with pytest.raises(ConfigError, match="certified on different test sets"):
        export([make_result(5), make_result(6)], "markdown")
