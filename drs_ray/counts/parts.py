"""Which objects hold a run's units, and reading them: each unit exactly once, whatever a compactor does meanwhile.

A unit's rows are in its small part, in a compacted object, or in both, and they are the same rows: a function of the
run and the unit. A compactor writes a compacted object in one piece, reads it back, and only then deletes the small
parts that are in it; it never deletes a compacted object. So from the moment a unit is stored, at every moment its
small part or a sound compacted object is there, wherever a compactor stops or is killed. (Only `repair` takes compacted
objects away: those that readers refuse; and, for a unit that the user names, one that it has rewritten without it.)

A reader lists the small parts first and the compacted objects afterwards, with requests of its own.

- No unit is missed. If the first listing did not show a unit's small part, although the unit had been stored, the part
  was deleted before the listing came to it, so its compacted object was there already, and the second listing, which
  begins later, shows it. (A unit that is first stored while listings run may be seen or not: as if a moment later.)
- No unit is read twice. Units are looked up by key: one that is in a compacted object is taken from there alone, from
  the first of them in the order of keys, and its small part, an old or a new one, is not read.
- A part that was listed and is gone when it is read was compacted in between: that unit alone is looked up again, and
  is now found in a compacted object, by the same argument. Units that were read already are not read again.

A listing is no snapshot, so that one that runs while an object is rewritten could miss both: the new object because
it came to that place before it was there, the old one because it was deleted meanwhile. So whoever rewrites stores a
note of its own between writing the new object and deleting the old one, and a reader lists the notes before and after
the compacted objects, and begins again if they differ. If they are the same, follow a unit's object from rewriting to
rewriting, to the first one whose rewriting is not noted. It was stored before the first list of notes ended (else the
note that follows it would not be in it), and deleted after the second one began (else its own note would be in it). So
it was there all the time between, when the compacted objects were listed.

Two compactors at once may put a unit into two compacted objects. The digests that both list for it must agree.
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
"""Large objects in memory, beside the one that is decoded."""
_READERS = 16  # parts are small: reading them is waiting; decoding them is not, and gains nothing from threads
_BATCH = 64  # parts that are decoded together
_LISTINGS = 5

_S = TypeVar("_S")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Parts:
    """What a listing found. Keys are those of units, except where it says object.

    small: the small parts, by key, also under keys that no unit of the run has. compacted: the units of each compacted
    object. holder: for each compacted unit, the compacted object that it is read from. foreign: keys of what else lies
    among the counts and cannot be a part, as its name does not end in .parquet (`_SUCCESS`, `Thumbs.db`): nobody reads
    it.
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
    """Which units are stored, and where.

    Raises:
        UnsoundError: a compacted object that cannot be trusted, or two that disagree on a unit.
    """
    parts, unsound = survey(store, record)
    if unsound:
        raise UnsoundError(*next(iter(unsound.items())))
    return parts


def survey(store: Store, record: RunRecord) -> tuple[Parts, dict[str, str]]:
    """`list_parts` without the compacted objects that cannot be trusted, and these with the reasons."""
    for _ in range(_LISTINGS):
        # The order is what keeps a reader from missing a unit: see the module.
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
    """Whether there are any counts, of whatever run."""
    return any(_may_be_part(item) for item in store.list(COUNTS_PREFIX))


def read_units(
    store: Store, record: RunRecord, parts: Parts, wanted: Collection[str] | None = None
) -> Iterator[UnitRows]:
    """The checked rows of stored units, each unit once, some units at a time, in no order that means anything.

    Args:
        store: where the run is.
        record: its run.json.
        parts: where the units are.
        wanted: keys among `parts`; None: all of them.

    Raises:
        CountsError: a part that cannot be trusted, or that was removed.
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
    """The objects under the keys, in order, `ahead` of them read in advance; None where there is none any more."""
    yield from _ahead(lambda key: (key, _get(store, key)), keys, ahead)


def fetch_batches(store: Store, keys: Sequence[str]) -> Iterator[list[tuple[str, bytes | None]]]:
    """`fetch` of many small objects, some at a time."""
    size = max(1, min(_BATCH, len(keys) // _READERS))
    batches = [keys[start : start + size] for start in range(0, len(keys), size)]
    yield from _ahead(lambda batch: [(key, _get(store, key)) for key in batch], batches, 2 * _READERS)


def _get(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except MissingObjectError:
        return None


def _ahead(get: Callable[[_S], _T], what: Iterable[_S], ahead: int) -> Iterator[_T]:
    """The results in order, each begun `ahead` places before its turn: memory does not depend on their number."""
    waiting: deque[Future[_T]] = deque()
    left = iter(what)
    pool = ThreadPoolExecutor(min(_READERS, ahead))
    try:
        waiting.extend(pool.submit(get, item) for item in islice(left, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(get, item) for item in islice(left, 1))
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
        there = [(key, data) for key, data in batch if data is not None]
        if there:
            yield decode_parts(there, record.run_id, record.dataset.num_classes)


def _may_be_part(item: StoredObject) -> bool:
    """Whatever reads counts reads `counts/**/*.parquet`, tools of others too: such a name is a part, or an error."""
    return item.key.endswith(".parquet")


def _rewritings(store: Store) -> list[str]:
    """The notes on compacted objects that were rewritten, and all else that lies beside them."""
    return [item.key for item in store.list(SET_ASIDE_PREFIX + COMPACTED_PREFIX)]


def _contradictions(compacted: Mapping[str, tuple[Entry, ...]]) -> dict[str, str]:
    """The objects that list a unit with other rows than another object does: nobody can tell which is right."""
    found: dict[str, str] = {}
    first: dict[str, tuple[str, Entry]] = {}
    for name in sorted(compacted):
        for entry in compacted[name]:
            other, known = first.setdefault(entry.key, (name, entry))
            if known != entry:
                found[name] = f"{entry.key} differs from the same unit in {other}"
                found.setdefault(other, f"{entry.key} differs from the same unit in {name}")
    return found
