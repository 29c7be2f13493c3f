"""Lists the objects that hold a run's units, and reads each unit exactly once, also while a compactor runs.

A unit's rows are in its small part, in a compacted object, or in both. Both hold the same rows, which are a function of
the run and the unit. A compactor writes a compacted object in one piece, reads it back, and only then deletes the small
parts that are in it. It never deletes a compacted object. So once a unit is stored, its small part or a sound compacted
object exists at every moment, wherever a compactor stops or is killed. (Only `repair` removes compacted objects: those
that readers refuse, and, for a unit that the user names, an object that `repair` has rewritten without the unit.)

A reader lists the small parts first and the compacted objects afterwards, with separate requests.

- No unit is missed. If a stored unit's small part is not in the first listing, it was deleted before the listing came
  to it. So its compacted object already existed, and the second listing, which begins later, contains it. (A unit that
  is stored for the first time during the listings may be missed, as if it had been stored afterwards.)
- No unit is read twice. Units are looked up by key. A unit in compacted objects is read only from the first of these
  objects in the order of keys; its small part, an old or a new one, is not read.
- If a listed part is missing when it is read, it was compacted in between. Only this unit is looked up again, and it is
  found in a compacted object by the same argument. Units that were already read are not read again.

A listing is not a snapshot. A listing during the rewriting of a compacted object could miss both objects: the new one
because it was stored after the listing had passed its key, and the old one because it was deleted before the listing
reached it. So each rewriting stores its own note between writing the new object and deleting the old one. A reader
lists the notes before and after the compacted objects, and starts again if they differ. If they are equal, follow a
unit's object from rewriting to rewriting, to the first object whose rewriting is not noted in the lists. This object
was stored before the first list ended (otherwise the note of the rewriting that made it would not be listed), and
deleted after the second list began (otherwise its own note would be listed). So it existed while the compacted objects
were listed.

Two compactors at the same time may put a unit into two compacted objects. Its digests in both objects must be equal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from drs_ray.counts.encoding import UnitRows, decode_parts
from drs_ray.counts.merged_parts import Entry, decode_compacted, read_index
from drs_ray.counts.rows import UnsoundError
from drs_ray.counts.run_record import RunRecord
from drs_ray.counts.schema import COMPACTED_PREFIX, COUNTS_PREFIX, SET_ASIDE_PREFIX
from drs_ray.errors import CountsError, MissingObjectError
from drs_ray.storage import Store, StoredObject

COMPACTED_AHEAD = 2
"""Large objects that are read in advance, while one is decoded."""
_READERS = 16  # threads speed up reading small parts, but not decoding them
_BATCH = 64  # parts that are decoded together
_LISTINGS = 5

_S = TypeVar("_S")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Parts:
    """The result of a listing. Iteration, `in` and `len` are over the keys of stored units.

    small: the small parts by key, also under keys that no unit of the run has. compacted: the units of each compacted
    object. holder: for each compacted unit, the key of the object that it is read from. foreign: keys below counts/
    that do not end in .parquet (`_SUCCESS`, `Thumbs.db`), so they cannot be parts and are not read.
    """

    small: Mapping[str, StoredObject]
    compacted: Mapping[str, tuple[Entry, ...]]
    holder: Mapping[str, str]
    foreign: tuple[str, ...] = ()

    def __contains__(self, key: object) -> bool:
        return key in self.holder or key in self.small

    def __iter__(self) -> Iterator[str]:
        """Each stored key once."""
        yield from self.holder
        yield from (key for key in self.small if key not in self.holder)

    def __len__(self) -> int:
        return len(self.small.keys() | self.holder.keys())


def list_parts(store: Store, record: RunRecord) -> Parts:
    """List the stored units and their objects.

    Raises:
        UnsoundError: a compacted object cannot be trusted, or two compacted objects disagree on a unit.
    """
    parts, unsound = survey(store, record)
    if unsound:
        raise UnsoundError(*next(iter(unsound.items())))
    return parts


def survey(store: Store, record: RunRecord) -> tuple[Parts, dict[str, str]]:
    """`list_parts` without compacted objects that cannot be trusted, and these objects with the reasons."""
    for _ in range(_LISTINGS):
        # In this order no unit is missed: see the module docstring.
        listed = list(store.list(COUNTS_PREFIX))
        small = {i.key: i for i in listed if _may_be_part(i) and not i.key.startswith(COMPACTED_PREFIX)}
        foreign = tuple(item.key for item in listed if not _may_be_part(item))
        rewritings = _rewritings(store)
        keys = [item.key for item in store.list(COMPACTED_PREFIX) if _may_be_part(item)]
        if _rewritings(store) != rewritings:
            continue
        compacted: dict[str, tuple[Entry, ...]] = {}
        unsound: dict[str, str] = {}
        for key, data in fetch(store, keys, COMPACTED_AHEAD):
            try:
                if data is not None:
                    compacted[key] = read_index(data, key, record.run_id)
            except UnsoundError as error:
                unsound[key] = error.reason
        if len(compacted) + len(unsound) == len(keys):
            unsound |= _contradictions(compacted)
            compacted = {key: entries for key, entries in compacted.items() if key not in unsound}
            holder = {entry.key: name for name in sorted(compacted, reverse=True) for entry in compacted[name]}
            return Parts(small, compacted, holder, foreign), unsound
    raise CountsError(f"{store.uri}: compacted objects vanish while they are read; end what removes them, then go on")


def has_parts(store: Store) -> bool:
    """Whether the store has parts of any run."""
    return any(_may_be_part(item) for item in store.list(COUNTS_PREFIX))


def read_units(
    store: Store, record: RunRecord, parts: Parts, wanted: Collection[str] | None = None
) -> Iterator[UnitRows]:
    """The checked rows of stored units, each unit once, several units at a time, in any order.

    Args:
        store: the run's store.
        record: its run.json.
        parts: the listing.
        wanted: keys among `parts`; None: all of them.

    Raises:
        CountsError: a part cannot be trusted, or was removed.
    """
    keys = list(parts) if wanted is None else list(wanted)
    for _ in range(_LISTINGS):
        vanished: list[str] = []
        yield from _read_compacted(store, record, parts, keys, vanished)
        yield from _read_small(store, record, [key for key in keys if key not in parts.holder], vanished)
        if not vanished:
            return
        keys, parts = vanished, list_parts(store, record)
        gone = [key for key in keys if key not in parts]
        if gone:
            raise CountsError(f"counts part {gone[0]}: was removed while the run was read; run the same command again")
    raise CountsError(f"{store.uri}: parts vanish while they are read; end what removes them, then go on")


def fetch(store: Store, keys: Sequence[str], ahead: int) -> Iterator[tuple[str, bytes | None]]:
    """The objects under the keys, in order, with `ahead` of them read in advance; None for a missing object."""
    yield from _prefetched(lambda key: (key, _get(store, key)), keys, ahead)


def fetch_batches(store: Store, keys: Sequence[str]) -> Iterator[list[tuple[str, bytes | None]]]:
    """`fetch` of many small objects in batches."""
    size = max(1, min(_BATCH, len(keys) // _READERS))
    batches = [keys[start : start + size] for start in range(0, len(keys), size)]
    yield from _prefetched(lambda batch: [(key, _get(store, key)) for key in batch], batches, 2 * _READERS)


def _get(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except MissingObjectError:
        return None


def _prefetched(get: Callable[[_S], _T], items: Iterable[_S], ahead: int) -> Iterator[_T]:
    """The results of `get` in order, computed up to `ahead` items in advance, in bounded memory."""
    waiting: deque[Future[_T]] = deque()
    remaining = iter(items)
    pool = ThreadPoolExecutor(min(_READERS, ahead))
    try:
        waiting.extend(pool.submit(get, item) for item in islice(remaining, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(get, item) for item in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _read_compacted(
    store: Store, record: RunRecord, parts: Parts, keys: Sequence[str], vanished: list[str]
) -> Iterator[UnitRows]:
    wanted: dict[str, list[str]] = {}
    for key in keys:
        if key in parts.holder:
            wanted.setdefault(parts.holder[key], []).append(key)
    for name, data in fetch(store, sorted(wanted), COMPACTED_AHEAD):
        if data is None:
            vanished += wanted[name]
        else:
            yield decode_compacted(data, name, record, wanted[name])


def _read_small(store: Store, record: RunRecord, keys: Sequence[str], vanished: list[str]) -> Iterator[UnitRows]:
    for batch in fetch_batches(store, keys):
        vanished += [key for key, data in batch if data is None]
        found = [(key, data) for key, data in batch if data is not None]
        if found:
            yield decode_parts(found, record.run_id, record.dataset.num_classes)


def _may_be_part(item: StoredObject) -> bool:
    """Whether an object's name ends in .parquet: all readers, also other tools, read `counts/**/*.parquet`."""
    return item.key.endswith(".parquet")


def _rewritings(store: Store) -> list[str]:
    """Keys of the notes on rewritten compacted objects, and of compacted objects that were moved aside."""
    return [item.key for item in store.list(SET_ASIDE_PREFIX + COMPACTED_PREFIX)]


def _contradictions(compacted: Mapping[str, tuple[Entry, ...]]) -> dict[str, str]:
    """The compacted objects that disagree with another one on a unit; it is unknown which of them is right."""
    found: dict[str, str] = {}
    first: dict[str, tuple[str, Entry]] = {}
    for name in sorted(compacted):
        for entry in compacted[name]:
            other, known = first.setdefault(entry.key, (name, entry))
            if known != entry:
                found[name] = f"{entry.key} differs from the same unit in {other}"
                found.setdefault(other, f"{entry.key} differs from the same unit in {name}")
    return found
