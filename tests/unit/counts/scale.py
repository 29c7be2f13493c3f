"""Runs with stored parts for the tests of reading, compacting and repairing, and stores that are watched or fail."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Container, Iterator, Sequence

from drs_ray.counts.parts import list_parts, read_units
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.outcome import Outcome
from drs_ray.engine.remaining_units import RemainingUnits
from drs_ray.storage import Store, StoredObject
from tests.unit.counts.factories import MemoryStore
from tests.unit.engine.factories import part_of, record_of

FIXED = record_of(8)
ADAPTIVE = record_of(9, stages=3)
Change = Callable[[dict[str, bytes]], object]
SHARES = (1.0, 0.6, 0.0)  # of three images in turn one is certain, one is open to the last stage, one is hopeless


class Killed(BaseException):
    """Stands for SIGKILL: nothing handles it."""


def own(image_id: int) -> float:
    """Votes for class 0: the last block has no open image, so it ends with its first stage."""
    return SHARES[image_id % 2 * 2 if image_id >= 6 else image_id % 3]


def finish(record: RunRecord, store: Store, wrong: Container[str] = ()) -> None:
    """Do all that a driver would find missing; units that are `wrong` get votes that add up and are not theirs."""
    remaining = RemainingUnits(record, store)
    todo = remaining.missing()
    while todo:
        unit = todo.pop(0)
        part = part_of(record, unit, (lambda image_id: 0.3) if unit.key in wrong else own)
        store.put(unit.key, part)
        if remaining.adaptive:
            todo += remaining.done(unit, Outcome(1.0, 0.1, part))


def stored(record: RunRecord) -> MemoryStore:
    """A store with all counts of a run."""
    store = MemoryStore()
    finish(record, store)
    return store


def copy_of(store: MemoryStore) -> MemoryStore:
    """The same objects."""
    other = MemoryStore()
    other.objects = dict(store.objects)
    return other


def rows_in(store: Store, record: RunRecord) -> list[str]:
    """All rows that a reader sees, sorted: a row that is seen twice is there twice."""
    rows = []
    for units in read_units(store, record, list_parts(store, record)):
        rows += [json.dumps(row, sort_keys=True) for row in units.table.to_pylist()]
    return sorted(rows)


def small_keys(store: MemoryStore) -> list[str]:
    """The small parts."""
    return sorted(key for key in store.objects if key.startswith("counts/k"))


class SteppedStore(MemoryStore):
    """Calls `step` before every operation, and before each key that a listing looks at: no listing is a snapshot."""

    def __init__(self, objects: dict[str, bytes], step: Callable[[], None]) -> None:
        super().__init__()
        self.objects = objects
        self._step_of = step
        self._lock = threading.RLock()  # parts are read by threads

    def _step(self) -> None:
        with self._lock:
            self._step_of()

    def get(self, key: str) -> bytes:
        self._step()
        return super().get(key)

    def put(self, key: str, data: bytes) -> None:
        self._step()
        super().put(key, data)

    def create(self, key: str, data: bytes) -> bytes:
        self._step()
        return super().create(key, data)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        self._step()
        last = ""
        while True:
            with self._lock:
                left = [key for key in self.objects if key.startswith(prefix) and key > last]
                if not left:
                    return
                last = min(left)
                found = StoredObject(last, len(self.objects[last]), 0.0)
            yield found
            self._step()

    def delete(self, key: str) -> None:
        self._step()
        super().delete(key)


def dies_after(store: MemoryStore, operations: int) -> SteppedStore:
    """The same objects; whoever uses them is killed at the operation after so many."""
    left = operations

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    return SteppedStore(store.objects, step)


def operations_of(store: MemoryStore, use: Callable[[Store], object]) -> int:
    """How many operations a use takes; the store is changed by them."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    use(SteppedStore(store.objects, step))
    return count


class Log(MemoryStore):
    """A copy of a store that keeps every change, to be made again in another store."""

    def __init__(self, before: MemoryStore) -> None:
        super().__init__()
        self.objects = dict(before.objects)
        self.changes: list[Change] = []

    def put(self, key: str, data: bytes) -> None:
        self.changes.append(lambda objects: objects.__setitem__(key, data))
        super().put(key, data)

    def create(self, key: str, data: bytes) -> bytes:
        self.changes.append(lambda objects: objects.setdefault(key, data))
        return super().create(key, data)

    def delete(self, key: str) -> None:
        self.changes.append(lambda objects: objects.pop(key, None))
        super().delete(key)


def meanwhile(before: MemoryStore, changes: Sequence[Change], due: Callable[[int], int]) -> SteppedStore:
    """A store in which `due(step)` changes have been made when the reader comes to its `step`-th request."""
    objects = dict(before.objects)
    step = made = 0

    def advance() -> None:
        nonlocal step, made
        while made < min(due(step), len(changes)):
            changes[made](objects)
            made += 1
        step += 1

    return SteppedStore(objects, advance)
