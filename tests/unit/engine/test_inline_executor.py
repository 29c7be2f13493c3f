"""The engine without Ray: what it does when a store fails."""

from __future__ import annotations

from collections import Counter

import pytest

from drs_ray.counts.plan import Unit, plan_units
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine import inline_executor
from drs_ray.engine.outcome import Outcome
from drs_ray.engine.remaining_units import RemainingUnits
from drs_ray.errors import DeviceLostError, EngineError, InterruptedRunError, StoreError
from drs_ray.storage import Store
from tests.unit.counts.factories import MemoryStore
from tests.unit.engine.factories import Recorder, part_of, record_of


class Runner:
    """Stands for a worker; votes are hand-made."""

    def __init__(self, record: RunRecord, sub_image: int, dataset: object = None) -> None:
        self._record, self.dataset = record, dataset or object()

    def run(self, unit: Unit, store: Store) -> Outcome:
        part = part_of(self._record, unit, lambda image_id: 0.6)
        store.put(unit.key, part)
        return Outcome(1.0, 0.1, part)


class FailingStore(MemoryStore):
    """The first `failures` writes of each key whose name has `part` in it fail."""

    def __init__(self, part: str, failures: int) -> None:
        super().__init__()
        self._part, self._failures = part, failures
        self.writes: Counter[str] = Counter()

    def put(self, key: str, data: bytes) -> None:
        self.writes[key] += 1
        if self._part in key and self.writes[key] <= self._failures:
            raise StoreError("503 Slow Down")
        super().put(key, data)


@pytest.fixture(autouse=True)
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline_executor, "UnitRunner", Runner)
    monkeypatch.setattr(inline_executor, "RETRY_SECONDS", 0.0)


def run(record: RunRecord, store: MemoryStore) -> tuple[dict[Unit, str], Recorder]:
    recorder = Recorder()
    remaining = RemainingUnits(record, store)
    return inline_executor.InlineExecutor().run(remaining.missing(), record, remaining, store, recorder), recorder


def test_adaptive_units_are_carried_to_their_last_stage() -> None:
    set_aside, recorder = run(record_of(6, stages=3), MemoryStore())
    assert set_aside == {}
    assert len(recorder.done) == 2 * 2 * 3


def test_a_unit_that_could_not_be_stored_is_tried_again_after_the_others() -> None:
    record = record_of()
    units = sorted(plan_units(record), key=lambda unit: unit.sub_image)
    store = FailingStore(units[0].key, failures=3)
    set_aside, recorder = run(record, store)
    assert set_aside == {}
    assert recorder.done == [*units[1:], units[0]]
    assert store.writes[units[0].key] == 4
    assert len(recorder.events) == 3


def test_a_unit_that_can_never_be_stored_is_set_aside() -> None:
    record = record_of()
    unit = plan_units(record)[2]
    set_aside, recorder = run(record, FailingStore(unit.key, failures=99))
    assert set_aside == {unit: "503 Slow Down"}
    assert len(recorder.done) == 7


def test_a_store_that_is_gone_ends_the_run() -> None:
    with pytest.raises(EngineError, match="the last 20 units all failed, giving up; last cause: 503 Slow Down"):
        run(record_of(), FailingStore("", failures=99))


def test_an_interrupt_is_no_units_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Runner, unit: Unit, store: Store) -> Outcome:
        raise InterruptedRunError("interrupted by SIGTERM", 15)

    monkeypatch.setattr(Runner, "run", interrupted)
    with pytest.raises(InterruptedRunError):
        run(record_of(), MemoryStore())


def test_a_lost_gpu_ends_the_run_and_no_unit_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Runner, unit: Unit, store: Store) -> Outcome:
        raise DeviceLostError("the GPU no longer works in this process")

    monkeypatch.setattr(Runner, "run", lost)
    with pytest.raises(DeviceLostError):
        run(record_of(), MemoryStore())
    monkeypatch.setattr(Runner, "measure", lambda *given: lost(*given), raising=False)
    with pytest.raises(DeviceLostError):
        inline_executor.InlineExecutor().measure(plan_units(record_of())[:1], record_of(), Recorder())
