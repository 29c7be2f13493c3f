"""What a run will take, by hand: of eight images, two sub-images with measured speeds of 900 and 100 samples/s."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from drs_ray import certify
from drs_ray.config import RunConfig, parse_config
from drs_ray.engine import first_start, forecast
from drs_ray.engine.description import out_of_reach
from drs_ray.engine.forecast import RunPlan, Size, plan_run
from drs_ray.engine.probe import Speed
from drs_ray.errors import EngineError
from tests.support.runs import drs_ray_here, run_data, write_config
from tests.unit.engine.factories import Recorder

SPEEDS = {0: Speed(900.0, 900.0, 900.0, classes=2.0), 1: Speed(100.0, 80.0, 120.0, classes=4.0)}


def config(place: Path, budget: dict[str, int] | None = None, **engine: Any) -> RunConfig:
    """Eight images in blocks of three, 50 selection and 400 estimation samples."""
    data = run_data(place / "run", images=8)
    data["budget"] |= budget or {}
    data["engine"] |= engine
    return parse_config(data)


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[int, Speed]:
    speeds = dict(SPEEDS)
    for module in (forecast, first_start):
        monkeypatch.setattr(module, "measure", lambda record, prober, observer: speeds)
    return speeds


def hours(seconds: float) -> float:
    return pytest.approx(seconds / 3600)


def test_a_fixed_number_of_samples(tmp_path: Path) -> None:
    planned = plan_run(config(tmp_path, workers=4, cpus_per_worker=0.5))
    assert planned.least == planned.most
    size = planned.most
    assert (size.units, size.samples) == (2 * 3, 2 * 8 * 450)  # blocks of 3, 3 and 2 images
    assert size.worker_hours == hours(8 * 450 / 900 + 8 * 450 / 100)  # 4 + 36 s
    assert planned.hours(size) == hours(10)
    assert (planned.gpus, planned.device_hours(size)) == (0.0, hours(20))  # half a CPU each
    assert not (tmp_path / "run").exists()


def test_an_adaptive_run_is_known_between_two_ends(tmp_path: Path) -> None:
    """Stages of 100, 100 and 200 samples."""
    planned = plan_run(config(tmp_path, {"stages": 3}, workers=4))
    least, most = planned.least, planned.most
    assert (least.units, least.samples) == (6, 2 * 8 * 150)
    assert least.worker_hours == hours(8 * 150 / 900 + 8 * 150 / 100)
    assert (most.units, most.samples) == (3 * 6, 2 * 8 * 450)
    assert most.worker_hours == hours(40)
    assert 0 < least.bytes < most.bytes


def test_images_whose_samples_are_cut(tmp_path: Path) -> None:
    planned = plan_run(config(tmp_path, samples_per_unit=200))
    assert (planned.most.units, planned.most.samples) == (2 * 3 * 2, 2 * 8 * 450)
    assert planned.most.worker_hours == hours(40)


def test_a_single_short_block(tmp_path: Path) -> None:
    planned = plan_run(config(tmp_path, images_per_unit=100))
    assert (planned.most.units, planned.most.samples) == (2, 2 * 8 * 450)
    assert planned.most.worker_hours == hours(40)


def test_more_workers_than_units_save_no_more_time(tmp_path: Path) -> None:
    planned = plan_run(config(tmp_path, workers=1000))
    assert planned.hours(planned.most) == hours(40 / 6)
    assert plan_run(config(tmp_path)).workers == 1  # in this process


def test_the_sizes_are_those_of_the_run_by_the_slowest_sub_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In four seconds it draws 400 samples, less than an image has; the other one, eight images."""
    monkeypatch.setattr(first_start, "is_small", lambda record, workers: False)
    planned = plan_run(config(tmp_path, images_per_unit=None, seconds_per_unit=4.0))
    assert planned.record.images_per_unit == 1
    assert planned.record.config.engine.samples_per_unit is None  # an image is not worth cutting
    assert planned.most.units == 16


def test_hours_of_a_share_of_a_gpu() -> None:
    size = Size(units=100, samples=1, bytes=1, worker_hours=8.0)
    gpu = RunPlan(record=None, least=size, most=size, speeds={}, float32_speeds={}, workers=16, gpus=0.25, cpus=2.0)  # type: ignore[arg-type]
    assert (gpu.hours(size), gpu.device_hours(size)) == (0.5, 2.0)


def test_a_sub_image_that_could_not_be_measured_is_named(tmp_path: Path, measured: dict[int, Speed]) -> None:
    del measured[1]
    with pytest.raises(EngineError, match=r"^sub-image 1: its speed could not be measured: .*run `drs-ray certify`"):
        plan_run(config(tmp_path))


@pytest.mark.parametrize("budget", [{}, {"stages": 2, "estimation": 4000}])
def test_bytes_are_about_those_of_the_run(
    tmp_path: Path, measured: dict[int, Speed], budget: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    planned = plan_run(config(tmp_path, budget))
    certify(config(tmp_path, budget))
    parts = [path.stat().st_size for path in (tmp_path / "run" / "counts").rglob("*.parquet")]
    assert planned.least.units <= len(parts) <= planned.most.units
    assert 0.8 * planned.least.bytes <= sum(parts) <= 1.25 * planned.most.bytes


def rs(place: Path, sections: dict[str, dict[str, Any]] | None = None, **classifier: Any) -> dict[str, Any]:
    """One sub-image, at which the least numbers of samples are known."""
    data = run_data(place / "run", images=3)
    data["classifiers"] = [data["classifiers"][0] | classifier]
    data["partition"] = {"name": "none"}
    for name, section in (sections or {}).items():
        data[name] = data.get(name, {}) | section
    return data


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"budget": {"estimation": 9}, "certificate": {"rivals": False}}, "with 9 samples .*alpha 0.001; use 10 at"),
        ({"budget": {"estimation": 9}}, "budget.estimation: with 9 samples .*; use 11 at least"),
        ({"budget": {"estimation": 6}, "certificate": {"alpha": 0.01, "rivals": False}}, "use 7 at least"),
        ({"budget": {"estimation": 8, "stages": 2}}, "with 8 samples .*; use 12 at least"),
        ({"certificate": {"radii": [0, 3, 4]}}, "radii: the smallest above 0, 3, is out of reach: 400 .* certify 1.0"),
        ({"budget": {"estimation": 11}}, "radii: the smallest above 0, 0.25, is out of reach: 11 samples"),
    ],
)
def test_what_nobody_can_get_is_said_with_what_can(
    tmp_path: Path, sections: dict[str, dict[str, Any]], said: str
) -> None:
    (found,) = out_of_reach(parse_config(rs(tmp_path, sections)), 10)
    assert re.search(said, found)
    assert "\n" not in found


@pytest.mark.parametrize("sections", [{}, {"certificate": {"radii": [0]}}, {"certificate": {"radii": [0, 0.5, 9]}}])
def test_nothing_is_said_where_something_can_be_had(tmp_path: Path, sections: dict[str, dict[str, Any]]) -> None:
    assert list(out_of_reach(parse_config(rs(tmp_path, sections)), 10)) == []


def test_doubts_are_told_before_work_begins(tmp_path: Path) -> None:
    data = rs(tmp_path, {"budget": {"estimation": 9}}, sigma=64)
    recorder = Recorder()
    certify(parse_config(data), recorder)
    assert [event.split(": ")[1] for event in recorder.events] == ["classifiers.0.sigma", "budget.estimation"]
    assert all(event.startswith("warning: ") for event in recorder.events)
    planned = drs_ray_here(["plan", str(write_config(tmp_path / "config.yaml", data))])
    assert "plan: warning: classifiers.0.sigma: 64 is in pixel units" in planned.stderr
    assert "plan: warning: budget.estimation: with 9 samples" in planned.stderr
