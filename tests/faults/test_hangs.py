"""A worker whose process lives and never answers: Ray sees nothing wrong, the driver must."""

from __future__ import annotations

from pathlib import Path

import pytest

from drs_ray import certify
from drs_ray.config import parse_config
from drs_ray.counts.plan import Unit
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Outcome
from tests.support.runs import BATCH, counts_digest, run_config, run_data

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


class MarksAfterTheFirstUnits(Observer):
    """Puts the marker in place when units of both sub-images are done: how long one takes is known then."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker
        self._seen: set[int] = set()
        self.events: list[tuple[str, str]] = []

    def unit_done(self, unit: Unit, outcome: Outcome) -> None:
        if len(self._seen) < 2:
            self._seen.add(unit.sub_image)
            if len(self._seen) == 2:
                self._marker.touch()

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        self.events.append((kind, message))


def test_a_stopped_worker_is_ended_and_no_vote_changes(tmp_path):
    marker = tmp_path / "hang-once"
    options = {"images": 24, "factory": "hangs", "trigger": BATCH, "marker": str(marker)}
    undisturbed = certify(run_config(tmp_path / "undisturbed", **options))
    data = run_data(tmp_path / "run", address="local", **options)
    data["engine"] |= {"hang_seconds": 10.0, "store_seconds": 1.0}
    observer = MarksAfterTheFirstUnits(marker)
    disturbed = certify(parse_config(data), observer)
    assert not marker.exists()
    retried = [message for kind, message in observer.events if kind == "unit_retried"]
    assert len(retried) == 1
    assert "gave no answer for" in retried[0]
    assert counts_digest(disturbed.uri) == counts_digest(undisturbed.uri)
