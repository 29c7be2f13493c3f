"""Certificates that leave and enter drs-ray by the command line: export, import, and one certificate in full."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest

import drs_ray
from drs_ray.cli import main
from drs_ray.counts.encoding import encode_part
from drs_ray.counts.plan import plan_units
from drs_ray.counts.run_record import read_record
from drs_ray.engine.unit_runner import UnitRunner
from drs_ray.published.imported_run import ImportedResult
from drs_ray.storage import open_store
from tests.support.runs import run_config, run_data, write_config

IMAGES = 6
STATED = ["--dataset", "mnist5k", "--sigma", "0.5,0.25", "--n", "400", "--alpha", "0.001", "--n0", "50"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which no test changes."""
    place = tmp_path_factory.mktemp("finished") / "run"
    drs_ray.certify(run_config(place, images=IMAGES))
    return place


def run(*arguments: object) -> tuple[int, str, str]:
    """The command line in this process, which has loaded everything: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["drs-ray", *map(str, arguments)]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def ok(*arguments: object) -> str:
    code, out, err = run(*arguments)
    assert code == 0, err
    return out


def refused(wanted: int, *arguments: object) -> str:
    """The one line of an error."""
    code, out, err = run(*arguments)
    assert code == wanted, (out, err)
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_a_log_goes_out_and_comes_back_marked(finished: Path, tmp_path: Path) -> None:
    log, theirs = tmp_path / "new" / "own.tsv", tmp_path / "theirs"
    assert ok("export", finished, "--format", "tsv", "--output", log) == f"{log}\n"
    frame = pd.read_csv(log, delimiter="\t")
    assert list(frame.columns) == ["idx", "label", "predict", "radius", "correct", "time"]
    assert len(frame) == IMAGES
    assert ok("export", finished, "--format", "tsv") == log.read_text()

    code, out, err = run("import", log, theirs, *STATED, "--radius-rule", "square-root", "--radii", "0,0.1")
    assert (code, err.split(":")[:2]) == (0, ["warning", " the square-root rule is no certificate"])
    assert out.splitlines()[-1] == f"imported, not verified: {theirs}/certificates.parquet"
    found = drs_ray.read_run(str(theirs))
    assert isinstance(found, ImportedResult)
    assert found.certificates["image_id"].to_pylist() == frame["idx"].tolist()

    shown = ok("report", finished, theirs, "--output", tmp_path / "report")
    assert "not verified" in " ".join(shown.split())
    assert "theirs, imported, not verified" in (tmp_path / "report" / "report.html").read_text()
    table = ok("export", finished, theirs, "--format", "markdown", "--radii", "0.1,0.2")
    assert "| theirs, imported, not verified | 0.5, 0.25 | 50 + 400 | 0.001 |" in table
    assert ok("export", theirs, "--format", "latex").count(r"\\") == 2
    frame = pd.read_csv(io.StringIO(ok("export", theirs, "--format", "csv")))
    assert frame["radius"].tolist() == found.radius.tolist()


def test_what_needs_counts_refuses_an_imported_run(finished: Path, tmp_path: Path) -> None:
    log, theirs = tmp_path / "own.tsv", tmp_path / "theirs"
    ok("export", finished, "--format", "tsv", "--output", log)
    ok("import", log, theirs, *STATED)
    config = write_config(tmp_path / "config.yaml", run_data(theirs, images=IMAGES))
    for arguments in (
        ["reduce", theirs],
        ["verify", theirs, "--quiet"],
        ["certificate", theirs, 0],
        ["status", theirs],
        ["compact", theirs],
        ["repair", theirs],
        ["certify", config, "--quiet"],
    ):
        assert refused(1, *arguments) == (
            f"{theirs}: was imported from own.tsv: there are no counts behind its radii, so it can be reported and "
            "exported, and nothing else; name a run of drs-ray's own"
        )
    assert sorted(file.name for file in theirs.iterdir()) == ["certificates.parquet", "curve.parquet", "run.json"]


def test_bad_usage_gets_one_line(finished: Path, tmp_path: Path) -> None:
    log, place = tmp_path / "log.tsv", tmp_path / "place"
    assert refused(2, "import", log, place, *STATED) == (
        f"{log}: cannot be read (No such file or directory); give the path of a log"
    )
    log.write_text("idx\tlabel\tpredict\tradius\tcorrect\n0\t1\t1\t0.5\t1\n1,2,2,0.5,1\n")
    assert refused(1, "import", log, place, *STATED) == (
        "log.tsv: line 3: 1 field, the header has 5: it is separated by commas, the header by tabs; use one of them"
    )
    log.write_text("idx\tlabel\tpredict\tradius\tcorrect\n0\t1\t1\t0.5\t1\n")
    stated = [*STATED[:2], "--sigma", "half", *STATED[4:]]
    assert refused(2, "import", log, place, *stated) == (
        "--sigma: must be numbers separated by commas, for example 0,0.5,1; got half"
    )
    assert refused(2, "import", log, place, *STATED, "--alpha", 2).startswith("import: alpha: ")
    assert refused(2, "import", log, place, *STATED, "--radius-rule", "best").startswith("import: radius_rule: ")
    assert not place.exists()
    assert refused(1, "import", log, finished, *STATED).endswith("holds another run already; choose another place")
    assert refused(2, "export", finished, "--format", "xlsx") == (
        "format must be one of tsv, csv, markdown, latex, got 'xlsx'"
    )
    for output in (f"{tmp_path}/", "s3://bucket"):
        assert refused(2, "export", finished, "--format", "tsv", "--output", output) == (
            f"--output: {output} names no file; give one, for example drs.tsv or s3://bucket/drs.tsv"
        )
    assert refused(1, "export", place, "--format", "tsv").startswith(f"{place}: no drs-ray run here")
    for arguments in (["certificate", finished, 99], ["verify", finished, "--image", 99, "--quiet"]):
        assert refused(2, *arguments) == f"image 99 is not of the run in {finished} (6 images); nearest: 3, 4, 5"


def test_logs_alone_and_logs_of_other_images(finished: Path, tmp_path: Path) -> None:
    every_second, predicted = tmp_path / "second.tsv", tmp_path / "predicted.tsv"
    header, *rows = ok("export", finished, "--format", "tsv").splitlines()
    every_second.write_text("\n".join([header, *rows[::2]]))
    fields = [row.split("\t") for row in rows]
    predicted.write_text(
        "idx\tlabel\tpredict\tcorrect\ttime\n" + "\n".join("\t".join([*row[:3], *row[4:5], "0:01"]) for row in fields)
    )
    for name, file in (("log", every_second), ("predictions", predicted)):
        ok("import", file, tmp_path / name, *STATED[:6], "--alpha", "0.001", "--radius-rule", "linear")
    alone = ok("report", tmp_path / "predictions", "--output", tmp_path / "alone")
    assert alone.splitlines()[-3:] == [
        f"{tmp_path}/alone/{name}" for name in ("report.html", "certified_accuracy.svg", "certified_accuracy.png")
    ]
    told = refused(2, "report", finished, tmp_path / "log")
    assert told.endswith("report each on its own, or those images that all have with `drs-ray report --common`")
    assert refused(2, "report", finished, "--partial", "--common").startswith("--common: is for several finished runs")
    shown = " ".join(
        ok("report", finished, tmp_path / "log", "--common", "--compare-rules", "--output", tmp_path / "both").split()
    )
    assert f"on {IMAGES // 2} common images of mnist5k (test)" in shown
    assert "With fewer samples" not in shown
    page = (tmp_path / "both" / "report.html").read_text()
    assert f"Only the {IMAGES // 2} images that all of these have." in page
    runs = [drs_ray.read_run(str(place)) for place in (finished, tmp_path / "log")]
    assert drs_ray.write_report(runs, str(tmp_path / "python"), common=True)[0] == "report.html"
    assert ok("export", tmp_path / "predictions", "--format", "tsv") == predicted.read_text() + "\n"


def test_one_certificate_in_full_and_its_audit(finished: Path) -> None:
    """The printed expression gives the stored radius, and the printed command counts the printed units again."""
    result = drs_ray.read_run(str(finished))
    radius = result.radius.max()
    image_id = result.certificates["image_id"][int(result.radius.argmax())].as_py()
    shown = ok("certificate", finished, image_id)
    values = dict(re.findall(r"^(\S.*?)  +(.*?) *$", shown, re.MULTILINE))
    expression = re.search(r"R >= (.*?) *$", shown, re.MULTILINE)
    assert expression
    value = eval(expression[1], {"sqrt": math.sqrt, "min": min})
    assert 0 < radius - 1e-8 < value <= radius
    assert f"{value:.6f}"[:-1] in values["certified radius"]
    units = re.findall(r"counts/\S+", shown)
    assert len(units) == 2

    again = values["recompute"].split(" ")
    assert again[0] == "drs-ray"
    checked = ok(*again[1:], "--quiet")
    values = dict(re.findall(r"^(\S.*?)  +(.*?) *$", checked, re.MULTILINE))
    assert values["units"] == "2 of 4 stored, all that it is in"
    assert values["images"] == f"image {image_id}"
    assert values["noise samples"] == "900 of 5,400 stored"
    assert "meets with 95 %" not in values
    assert values["comparisons"].endswith(", 0 differ")
    assert checked.splitlines()[-1] == "the stored votes agree"
    found = drs_ray.read_certificate(str(finished), image_id)
    assert found.units == tuple(sorted(units)) == tuple(sorted(drs_ray.verify(str(finished), image=image_id).checked))


def test_a_wrong_vote_of_the_image_is_found_and_of_another_is_not(tmp_path: Path) -> None:
    drs_ray.certify(run_config(tmp_path / "run", images=3))
    store = open_store(str(tmp_path / "run"))
    record = read_record(store)
    unit = plan_units(record)[0]
    rows = list(UnitRunner(record, 0).count(unit))
    row = next(row for row in rows if row.image_id == record.image_ids[1] and row.phase == "estimation")
    top, second = row.votes.argsort()[::-1][:2]
    row.votes[[top, second]] += [1, -1]
    store.put(unit.key, encode_part(rows, record.run_id, unit.key))
    drs_ray.verify(store.uri, image=record.image_ids[0]).check()
    found = drs_ray.verify(store.uri, image=record.image_ids[1])
    assert [difference.image_id for difference in found.differences] == [record.image_ids[1]]


def test_the_library_does_what_the_command_does(finished: Path, tmp_path: Path) -> None:
    ours = drs_ray.read_run(str(finished))
    text = drs_ray.export([ours], "tsv")
    assert text == ok("export", finished, "--format", "tsv")
    (tmp_path / "log.tsv").write_text(text)
    theirs = drs_ray.import_log(
        tmp_path / "log.tsv", str(tmp_path / "theirs"), dataset="mnist5k", sigmas=[0.5, 0.25], estimation=400
    )
    assert json.loads((tmp_path / "theirs" / "run.json").read_text())["kind"] == "imported"
    assert drs_ray.export([ours, theirs], "markdown").count("\n|") == 3
    assert drs_ray.write_report([ours, theirs], str(tmp_path / "report"))[0] == "report.html"
