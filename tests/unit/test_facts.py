"""What `plan` prints, to the letter."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from drs_ray.engine.forecast import RunPlan, Size
from drs_ray.engine.probe import Speed
from drs_ray.facts import plan_facts, render_facts
from tests.unit.engine.factories import record_of

SPEEDS = {0: Speed(1234.4, 1200.0, 1300.0), 1: Speed(1000.0, 500.0, 1500.0)}
LEAST = Size(units=1200, samples=3_600_000, bytes=1_500_000, worker_hours=2.0)
MOST = Size(units=4800, samples=14_400_000, bytes=6_000_000, worker_hours=8.0)


def planned(least: Size = MOST, most: Size = MOST, gpus: float = 0.0, **engine: Any) -> RunPlan:
    return RunPlan(record_of(**engine), least, most, SPEEDS, workers=4, gpus=gpus, cpus=2.0)


def test_a_fixed_number_of_samples_without_a_price() -> None:
    run = planned()
    assert plan_facts(run, None) == {
        "run": run.record.run_id,
        "images": "12",
        "sub-images": "2",
        "unit": "3 images of a sub-image",
        "units": "4,800",
        "noise samples": "14,400,000",
        "bytes of parts": "6.0 MB",
        "device": "cpu (2 CPU cores)",
        "samples/s per worker": "1,234 / 1,000 (500 to 1,500)",  # a spread of 10 % is none
        "workers": "4",
        "CPU hours": "16",
        "expected hours": "2",
    }


def test_an_adaptive_run_on_shared_gpus_with_a_price() -> None:
    facts = plan_facts(planned(LEAST, MOST, gpus=0.5, samples_per_unit=1000), 2.5)
    assert facts["unit"] == "3 images of a sub-image, at most 1,000 samples of each"
    assert facts["units"] == "1,200 to 4,800"
    assert facts["noise samples"] == "3,600,000 to 14,400,000"
    assert facts["bytes of parts"] == "1.5 MB to 6.0 MB"
    assert facts["GPU hours"] == "1 to 4"
    assert facts["expected hours"] == "0.5 to 2"
    assert facts["cost"] == "2.50 to 10.00 at 2.5 a GPU hour"


def test_a_price_of_nothing_is_a_price() -> None:
    assert plan_facts(planned(), 0.0)["cost"] == "0.00 at 0 a CPU hour"


def test_what_is_shown_is_no_markup() -> None:
    console = Console(width=80, no_color=True)
    with console.capture() as shown:
        console.print(render_facts({"reason": "[red]broken[/red] image [3]"}))
    assert shown.get().strip() == "reason  [red]broken[/red] image [3]"
