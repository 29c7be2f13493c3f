"""The report of an attack: its figures, the check, and where its table is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drs_ray.checks.attack.report import AttackReport, check_output
from drs_ray.cli.key_values import attack_values, render_attack
from drs_ray.counts.schema import ATTACKS, with_metadata
from drs_ray.errors import ConfigError, SoundnessError, StoreError

INF = float("inf")


def report_of(radii: Sequence[float], norms: Sequence[float]) -> AttackReport:
    rows = [
        {
            "image_id": 10 + at,
            "label": 3,
            "prediction": 3,
            "radius": radius,
            "norm": norm,
            "limit": 9.0,
            "rival": 5 if norm < INF else -1,
            "level": 0.001 / len(radii),
            "samples": 1000,
            "prediction_votes": [400, 410],
            "rival_votes": [560, 570],
            "perturbed": [0.5],
        }
        for at, (radius, norm) in enumerate(zip(radii, norms, strict=True))
    ]
    table = pa.Table.from_pylist(rows, schema=with_metadata(ATTACKS, "run", table="attacks"))
    return AttackReport("runs/x", "run", table, 1, 0.001, 0.01, 7, "cpu", "drs-ray attack runs/x --seed 7")


def test_figures_are_those_of_the_broken_images() -> None:
    report = report_of([1.0, 2.0, 0.5], [1.5, INF, 1.0])
    assert report.broken.tolist() == [True, False, True]
    assert report.median_ratio == 1.75
    assert report.smallest_slack == 0.5
    assert report.chance == pytest.approx(4 * 0.01 + 0.001)  # the one that abstains was drawn too
    report.check()
    values = attack_values(report)
    assert values["attacked"] == "3 images, 1 more abstains (--seed 7, cpu)"
    assert values["median norm / radius"] == "1.750"


def test_nothing_found_contradicts_nothing() -> None:
    report = report_of([1.0], [INF])
    assert report.median_ratio is None
    assert report.smallest_slack is None
    report.check()
    assert attack_values(report)["smallest norm - radius"] == "-"


def test_a_norm_at_the_radius_is_allowed_and_one_below_it_is_not() -> None:
    report_of([1.0], [1.0]).check()
    with pytest.raises(SoundnessError) as error:
        report_of([1.0, 0.5, 2.0], [2.0, 0.49999999, 1.2]).check()
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("runs/x: NOT SOUND: 2 of 3 attacked images")
    assert "worst image 12: class 3 is certified up to l2 norm 2.000000, but at 1.20" in text
    assert "(votes [560, 570] against [400, 410] of 1,000 per sub-image)" in text
    assert "at most 0.041" in text
    assert "repeat with `drs-ray attack runs/x --seed 7`" in text
    assert error.value.exit_code == 1


def test_a_norm_just_below_the_radius_is_shown_below_it() -> None:
    """Rounded up and down to six digits they would be 0.500000 and 0.499999: a certificate that held."""
    report = report_of([0.4999999], [0.4999996])
    with pytest.raises(SoundnessError, match=r"up to l2 norm 0\.4999998, but at 0\.4999996 class 5 wins"):
        report.check()
    table = render_attack(report)
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells[3:] == ["0.4999998", "5", "0.4999996", "0.9999994 UNSOUND"]
    sound = render_attack(report_of([0.4999], [0.5001]))
    assert [next(iter(column.cells)) for column in sound.columns][3:] == ["0.499", "5", "0.501", "1.000"]


def test_the_chance_is_not_rounded_down() -> None:
    report = replace(report_of([1.0], [0.5]), alpha=0.0100004)
    with pytest.raises(SoundnessError, match=r"with probability at most 0\.0211\."):
        report.check()


@pytest.mark.parametrize("file", ["attack.parquet", "some/place/attack.parquet", "{}/attack.parquet"])
def test_the_table_is_written_where_it_is_wanted(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = file.format(tmp_path)
    check_output(named)
    assert not list(tmp_path.iterdir())  # trying leaves nothing behind
    report = report_of([1.0], [2.0])
    report.write(named)
    there = pq.read_table(Path(named), partitioning=None)
    assert there.equals(report.table)
    assert there.schema.metadata == report.table.schema.metadata


@pytest.mark.parametrize("file", ["", "place/", ".", "{}", ".hidden"])
def test_an_output_that_names_no_file_is_refused(file: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^output must name a Parquet file to write, like .*attack.parquet, got"):
        check_output(file.format(tmp_path))


def test_an_output_that_cannot_be_written_is_told_before_the_attack(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        check_output(str(tmp_path / "file" / "attack.parquet"))
