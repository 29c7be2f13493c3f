"""What `status`, `plan` and `verify` say, in words."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from drs_ray.checks.recount import Difference
from drs_ray.checks.verify import VerifyReport
from drs_ray.cli.key_values import key_value_table, plan_values, status_values, verify_values
from drs_ray.counts.run_record import with_engine
from drs_ray.engine.forecast import RunPlan, Size
from drs_ray.engine.probe import Speed
from drs_ray.engine.status import Driver, RunStatus
from tests.unit.engine.factories import record_of

RECORD = record_of()

STATUS = RunStatus(
    record=RECORD,
    units=2000,
    units_done=1999,
    samples=3_000_000,
    samples_done=1_500_000,
    later_samples=0.0,
    driver="at work",
    samples_per_second=2500.4,
    seconds_since_part=12.3,
    sessions=2,
    session_seconds=3700.0,
    set_aside={},
    set_aside_unnamed=0,
    reduced=False,
    unknown_parts=(),
)


def rendered(values: dict[str, str]) -> list[str]:
    file = StringIO()
    Console(file=file, width=100, _environ={}).print(key_value_table(values))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_names_and_values_stand_in_columns_as_they_are() -> None:
    reason = "counts/a: expected [C, H, W], got [/red]"
    assert rendered({"run": "abc", "set aside": f"1 units\n{reason}"}) == [
        "run        abc",
        "set aside  1 units",
        f"           {reason}",
    ]


def test_status_of_a_run_at_work() -> None:
    assert status_values(STATUS) == {
        "run": RECORD.run_id,
        "started": "2026-01-02T03:04:05+00:00",
        "forward passes": "float32",
        "images": "12",
        "units": "1,999 of 2,000 (99 %)",
        "noise samples": "1,500,000 of 3,000,000",
        "driver": "at work",
        "last part": "12.3 s ago",
        "speed": "2,500 samples/s",
        "time left": "10 min 00 s",
        "sessions": "2 ended, 1 h 01 min in all",
        "reduced": "no",
    }


def test_status_of_a_run_that_has_not_begun() -> None:
    begun = replace(
        STATUS,
        units_done=0,
        samples_done=0,
        driver="none",
        samples_per_second=None,
        seconds_since_part=None,
        sessions=0,
        session_seconds=0.0,
    )
    values = status_values(begun)
    assert values["units"] == "0 of 2,000 (0 %)"
    assert [values[name] for name in ("driver", "last part", "speed", "time left", "sessions")] == [
        "none has begun",
        "-",
        "- samples/s",
        "unknown",
        "-",
    ]


def test_status_of_a_finished_run() -> None:
    done = replace(
        STATUS, units_done=2000, samples_done=3_000_000, driver="ended", samples_per_second=None, reduced=True
    )
    values = status_values(done)
    assert [values[name] for name in ("units", "driver", "speed", "time left", "reduced")] == [
        "2,000 of 2,000 (100 %)",
        "none at work",
        "- samples/s",
        "none",
        "yes",
    ]


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        ("none", "none has begun"),
        ("at work", "at work"),
        ("silent", "one has not ended, but no part came for longer than usual: killed, or stuck"),
        ("ended", "none at work"),
    ],
)
def test_what_is_said_of_the_driver(driver: Driver, words: str) -> None:
    assert status_values(replace(STATUS, driver=driver))["driver"] == words


def test_with_stages_the_time_left_is_a_lower_bound_until_it_can_be_estimated() -> None:
    unknown = replace(STATUS, record=record_of(stages=3), later_samples=None)
    assert status_values(unknown)["time left"] == "at least 10 min 00 s"
    estimated = replace(unknown, later_samples=1_500_000.0)
    assert status_values(estimated)["time left"] == "about 20 min 00 s"
    done = replace(unknown, samples_done=STATUS.samples, later_samples=0.0)
    assert status_values(done)["time left"] == "none"


def test_units_set_aside_are_named_up_to_five() -> None:
    few = status_values(replace(STATUS, set_aside={"counts/a": "NaN", "counts/b": "took down 5 workers"}))
    assert few["set aside"].splitlines() == [
        "2 units; mend the cause, then run certify again",
        "counts/a: NaN",
        "counts/b: took down 5 workers",
    ]
    many = status_values(replace(STATUS, set_aside={str(k): "NaN" for k in range(1000)}, set_aside_unnamed=1234))
    assert many["set aside"].splitlines() == [
        "1,000 units, and up to 1,234 more; mend the cause, then run certify again",
        *(f"{k}: NaN" for k in range(5)),
        "...",
    ]
    assert "set aside" not in status_values(STATUS)


def test_parts_that_nobody_planned_are_named() -> None:
    values = status_values(replace(STATUS, unknown_parts=("counts/a.txt", "counts/b.txt")))
    assert values["unknown parts"] == "counts/a.txt, counts/b.txt"


# plan

LEAST = Size(units=8, samples=3600, bytes=12_300, worker_hours=4.0)
SPEEDS = {0: Speed(1500.0, 1450.0, 1550.0), 1: Speed(1000.0, 800.0, 1200.0)}
PLAN = RunPlan(RECORD, LEAST, LEAST, SPEEDS, SPEEDS, 2, 0.0, 0.5)


def test_plan_of_a_run_of_known_size() -> None:
    values = plan_values(PLAN, price=None)
    expected = {
        "images": "12",
        "sub-images": "2",
        "unit": "3 images of a sub-image",
        "units": "8",
        "noise samples": "3,600",
        "bytes of parts": "12.3 kB",
        "device": "cpu (2 CPU cores)",
        "samples/s per worker": "1,500 / 1,000 (800 to 1,200)",
        "workers": "2",
        "CPU hours": "2",
        "expected hours": "2",
    }
    assert {name: values[name] for name in expected} == expected
    assert not {"cost", "in plain float32"} & values.keys()


def test_plan_says_what_bfloat16_and_compiling_save() -> None:
    record = with_engine(RECORD, precision="bfloat16", compile=True)
    slow = {sub_image: replace(speed, mean=speed.mean / 4) for sub_image, speed in SPEEDS.items()}
    values = plan_values(replace(PLAN, record=record, float32_speeds=slow), price=None)
    assert values["forward passes"] == "bfloat16, compiled"
    assert values["in plain float32"] == "8 hours (4 times as long)"


def test_plan_of_an_adaptive_run_on_gpus() -> None:
    most = Size(units=24, samples=14_400, bytes=40_000, worker_hours=16.0)
    values = plan_values(replace(PLAN, most=most, gpus=0.5), price=2.5)
    assert [values[name] for name in ("units", "noise samples", "bytes of parts", "GPU hours", "expected hours")] == [
        "8 to 24",
        "3,600 to 14,400",
        "12.3 kB to 40.0 kB",
        "2 to 8",
        "2 to 8",
    ]
    assert values["cost"] == "5.00 to 20.00 at 2.5 a GPU hour"


# verify

REPORT = VerifyReport(
    uri="runs/demo",
    record=RECORD,
    image=None,
    seed=7,
    device="cpu",
    hardware="2 CPU cores",
    level=1e-3,
    inexact="",
    units=1000,
    checked=tuple(f"counts/{number}" for number in range(10)),
    images=30,
    samples=13_500,
    samples_stored=3_600_000,
    comparisons=60,
    differences=(),
    shifts={},
)


def test_an_exact_check() -> None:
    assert verify_values(REPORT, images=4, level=1e-3) == {
        "run": RECORD.run_id,
        "units": "10 of 1,000 stored (--seed 7)",
        "images": "30 (up to 4 of each unit)",
        "noise samples": "13,500 of 3,600,000 stored",
        "device": "cpu (2 CPU cores)",
        "compared": "exactly",
        "meets with 95 %": "a wrong vote in 25.9 % of the images",
        "comparisons": "60, 0 differ",
    }


def test_a_check_of_everything_that_found_something() -> None:
    difference = Difference("counts/1", 3, "estimation", 0, 400, (1,), (10,), (9,))
    values = verify_values(replace(REPORT, samples_stored=13_500, differences=(difference,)), images=4, level=1e-3)
    assert values["meets with 95 %"] == "any wrong vote"
    assert values["comparisons"] == "60, 1 differ"


def test_a_check_by_a_test_says_what_it_can_find() -> None:
    shifts = {"selection": 0.31, "estimation": 0.054}
    values = verify_values(replace(REPORT, inexact="another CPU", shifts=shifts), images=4, level=0.01)
    assert values["compared"] == "by a homogeneity test of level 0.01"
    assert values["finds with 95 %"] == "vote shares that differ by 31.0 points in selection, 5.4 points in estimation"
    assert values["meets with 95 %"] == "such a difference in 25.9 % of the images"


def test_a_check_of_one_image_says_nothing_of_others() -> None:
    values = verify_values(replace(REPORT, image=17, images=2), images=4, level=1e-3)
    assert values["units"] == "10 of 1,000 stored, all that it is in"
    assert values["images"] == "image 17"
    assert "meets with 95 %" not in values
    assert REPORT.share_found < replace(REPORT, image=17).share_found == 1.0
