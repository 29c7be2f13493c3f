"""Auditing real runs: every rule of a run, adaptive and compacted ones, and rows that somebody changed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import drs_ray
from drs_ray.config import parse_config
from drs_ray.counts.compaction import compact_run
from drs_ray.counts.run_record import read_record
from drs_ray.errors import ConfigError, CountsError, SoundnessError
from drs_ray.storage import open_store
from tests.support.runs import drs_ray_here, run_config, run_data


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests that change it work on a copy."""
    place = tmp_path_factory.mktemp("finished") / "run"
    drs_ray.certify(run_config(place))
    return place


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def change(run: Path, column: str, new: Callable[[dict[str, Any]], Any]) -> int:
    """Write another value into the first certified row; returns its image."""
    file = run / "certificates.parquet"
    table = pq.read_table(file)
    rows = table.to_pylist()
    row = next(row for row in rows if row["radius"] > 0)
    row[column] = new(row)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
    return int(row["image_id"])


def test_the_command_line(run: Path) -> None:
    done = drs_ray_here(["audit", str(run)])
    assert (done.returncode, done.stderr) == (0, "")
    shown = {line[:33].strip(): line[33:].strip() for line in done.stdout.splitlines()}
    assert shown["run"] == read_record(open_store(str(run))).run_id
    assert shown["images"].startswith("12, ")
    assert [shown[name] for name in ("radii not proved", "rows that do not fit the counts", "radii far below")] == [
        "0"
    ] * 3
    assert done.stdout.splitlines()[-1] == "the counts prove every radius"

    image = change(run, "radius", lambda row: row["radius"] + 1e-9)
    done = drs_ray_here(["audit", str(run)])
    assert done.returncode == 1
    assert f"1 of 12 radii are above what the counts prove: images {image};" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("more", [1e-9, 1e-7, 0.1])
def test_a_radius_that_is_too_large_is_found(run: Path, more: float) -> None:
    image = change(run, "radius", lambda row: row["radius"] + more)
    found = drs_ray.audit(str(run))
    assert list(found.too_large) == [image]
    with pytest.raises(SoundnessError, match=f"images {image};"):
        found.check()


def test_a_radius_that_is_no_number_is_found(run: Path) -> None:
    image = change(run, "radius", lambda row: float("nan"))
    assert image in drs_ray.audit(str(run)).too_large


def test_a_radius_that_is_far_too_small_is_a_warning(run: Path) -> None:
    image = change(run, "radius", lambda row: row["radius"] * (1 - 2e-6))
    found = drs_ray.audit(str(run))
    assert list(found.far_below) == [image]
    found.check()
    done = drs_ray_here(["audit", str(run)])
    assert done.returncode == 0
    assert done.stderr.startswith(f"warning: image {image}: radius ")


@pytest.mark.parametrize(
    ("column", "new"),
    [
        ("label", lambda row: (row["label"] + 1) % 10),
        ("prediction", lambda row: (row["prediction"] + 1) % 10),
        ("correct", lambda row: not row["correct"]),
        ("selected_class", lambda row: (row["selected_class"] + 1) % 10),
        ("stage", lambda row: 1),
        ("samples", lambda row: row["samples"] + 1),
        ("estimation_samples", lambda row: [399, 400]),
        ("class_votes", lambda row: [row["class_votes"][0] - 1, row["class_votes"][1]]),
        ("runner_up_votes", lambda row: [401, 0]),
        ("rule", lambda row: "mean p_A bonferroni"),
    ],
)
def test_a_row_that_does_not_follow_from_the_counts_is_found(
    run: Path, column: str, new: Callable[[dict[str, Any]], Any]
) -> None:
    image = change(run, column, new)
    found = drs_ray.audit(str(run))
    assert list(found.inconsistent) == [image]
    assert found.inconsistent[image].startswith(f"{column} is ")
    with pytest.raises(SoundnessError, match="do not follow from the counts"):
        found.check()


def test_one_certificate_with_another_alpha_is_found(run: Path) -> None:
    change(run, "alpha", lambda row: 0.5)
    assert drs_ray.audit(str(run)).inconsistent


@pytest.mark.parametrize(
    "certificate",
    [
        {"alpha": 0.05},
        {"vote": "mean", "confidence": "bonferroni"},
        {"vote": "mean", "rivals": False},
        {"weights": (1.0, 2.5), "rivals": False, "confidence": "bonferroni"},
    ],
)
def test_every_reduction_is_proved(run: Path, certificate: dict[str, Any]) -> None:
    drs_ray.reduce(str(run), **certificate)
    found = drs_ray.audit(str(run))
    found.check()
    assert not found.far_below
    assert found.certified > 0


@pytest.mark.parametrize("sigmas", [(0.5, 0.25), (0.5, 0.5)], ids=["boxes", "pooled"])
def test_an_adaptive_and_compacted_run(tmp_path: Path, sigmas: tuple[float, float]) -> None:
    data = run_data(tmp_path / "run")
    data["classifiers"] = [mine | {"sigma": s} for mine, s in zip(data["classifiers"], sigmas, strict=True)]
    data["budget"] |= {"estimation": 800, "stages": 3}
    drs_ray.certify(parse_config(data))
    store = open_store(str(tmp_path / "run"))
    before = drs_ray.audit(store.uri)
    before.check()
    assert not before.far_below
    assert before.certified > 0
    assert before.rule.endswith("with pooled") == (sigmas[0] == sigmas[1])
    compact_run(store, read_record(store))
    assert drs_ray.audit(store.uri) == before


def test_missing_counts_are_found(run: Path) -> None:
    part = next((run / "counts").rglob("k1/**/*.parquet"))
    part.unlink()
    found = drs_ray.audit(str(run))
    assert found.inconsistent
    with pytest.raises(SoundnessError):
        found.check()


def test_places_without_a_reduced_run_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CountsError, match="no drs-ray run here"):
        drs_ray.audit(str(tmp_path / "nothing"))
    (run / "certificates.parquet").unlink()
    with pytest.raises(CountsError, match="drs-ray reduce"):
        drs_ray.audit(str(run))


def test_without_python_flint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "drs_ray.audit.balls", raising=False)
    monkeypatch.setitem(sys.modules, "flint", None)
    with pytest.raises(ConfigError, match=r"pip install drs-ray\[audit\]"):
        drs_ray.audit(str(run))
    done = drs_ray_here(["audit", str(run)])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
