"""Moving aside what cannot be trusted, so that the next `drs-ray certify` computes it again. Nothing is destroyed.

An object goes to `set-aside/` under its own key, with a note of the reason, and is deleted from the counts only when
its copy is there; an earlier object there is never replaced. Killed anywhere, it can be run again. Certificates and
curve go with the counts that they came from: what cannot be shown to follow from counts is no certificate.

A driver that is at work meanwhile may not notice that a unit it has finished was moved aside; its run then ends saying
what is missing, and is resumed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from drs_ray.errors import MissingObjectError
from drs_ray.results.compacted import digests
from drs_ray.results.encoding import UnitRows
from drs_ray.results.judge import Judge
from drs_ray.results.parts import COMPACTED_AHEAD, fetch, fetch_batches, survey
from drs_ray.results.rows import UnsoundError
from drs_ray.results.run_record import RunRecord
from drs_ray.results.schema import CERTIFICATES_KEY, CURVE_KEY, SET_ASIDE_PREFIX
from drs_ray.results.store import Store

_DERIVED = "derived from counts that cannot be trusted"


@dataclass(frozen=True)
class Finding:
    """An object that cannot be trusted, why, and where it was moved; None: nowhere (a dry run, or it is gone)."""

    key: str
    reason: str
    moved_to: str | None = None

    @property
    def text(self) -> str:
        """One line."""
        return f"{self.key}: {self.reason}" + (f"; moved to {self.moved_to}" if self.moved_to else "")


def repair_run(
    store: Store, record: RunRecord, *, dry_run: bool = False, told: Callable[[Finding], None] = lambda finding: None
) -> list[Finding]:
    """Check every object among a run's counts, and move aside those that cannot be trusted.

    Args:
        store: where the run is.
        record: its run.json.
        dry_run: change nothing.
        told: called with each finding as soon as it is dealt with.

    Raises:
        StoreError: the place cannot be read or written.
    """
    found = []
    for key, reason in find_unsound(store, record).items():
        finding = Finding(key, reason, None if dry_run else _move(store, key, reason))
        told(finding)
        found.append(finding)
    return found


def find_unsound(store: Store, record: RunRecord) -> dict[str, str]:
    """The objects that cannot be trusted, in the order in which they are to be moved, and why.

    Raises:
        StoreError: the place cannot be read.
    """
    parts, unsound = survey(store, record)
    judge, blocks = Judge(record), _Blocks()
    expected: dict[str, str] = {}  # digests of the compacted units that have a small part too
    for key, data in fetch(store, sorted(parts.compacted), COMPACTED_AHEAD):
        try:
            if data is not None:
                units = judge.compacted(data, key)
                entries = zip(units.keys, digests(units), strict=True)
                expected |= {unit: digest for unit, digest in entries if unit in parts.small}
                blocks.add(units, judge, set())
        except UnsoundError as error:
            unsound[error.key] = error.reason
    for batch in fetch_batches(store, sorted(parts.small)):
        sound, reasons = judge.small([(key, data) for key, data in batch if data is not None])
        unsound |= reasons
        for units in sound:
            held = zip(units.keys, digests(units), strict=True)
            other = {unit for unit, digest in held if expected.get(unit, digest) != digest}
            unsound |= {unit: f"differs from the same unit in {parts.holder[unit]}" for unit in other}
            blocks.add(units, judge, other)
    for unit, reason in blocks.contradictions():
        unsound.setdefault(parts.holder.get(unit, unit), f"{unit}: {reason}" if unit in parts.holder else reason)
    in_use = {key for key in unsound if key not in parts.holder}
    derived = {item.key for item in store.list(CERTIFICATES_KEY)} | {item.key for item in store.list(CURVE_KEY)}
    first = dict.fromkeys(sorted(derived & {CERTIFICATES_KEY, CURVE_KEY}), _DERIVED) if in_use else {}
    return first | dict(sorted(unsound.items()))  # a certificate never outlives its counts


class _Blocks:
    """What parts say of the images of their block: those of a stage have the same ones, all from the stage before."""

    def __init__(self) -> None:
        self._said: dict[tuple[int, int], dict[int, dict[bytes, list[str]]]] = {}  # by block, stage, images and labels

    def add(self, units: UnitRows, judge: Judge, but: Container[str]) -> None:
        """Note what sound units say, but for some."""
        for key, mine in units.slices().items():
            if key not in but:
                name = judge.name(key)
                ids, first = np.unique(units.rows.image_id[mine], return_index=True)
                said = np.stack([ids, units.rows.label[mine][first]], axis=1).tobytes()
                self._said.setdefault(name.block, {}).setdefault(name.stage, {}).setdefault(said, []).append(key)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Units that cannot all be right, and why. Which of them is wrong, nobody can tell."""
        for stages in self._said.values():
            for stage, said in sorted(stages.items()):
                before = stages.get(stage - 1, {})
                if len(said) > 1:
                    reason = "other images or labels than another part of the same block and stage"
                    yield from ((key, reason) for keys in said.values() for key in keys)
                elif len(before) == 1 and not _pairs(*said) <= _pairs(*before):
                    reason = "images or labels of this block's stages do not fit together"
                    yield from ((key, reason) for keys in (*said.values(), *before.values()) for key in keys)


def _pairs(said: bytes) -> set[tuple[int, int]]:
    return {(int(image), int(label)) for image, label in np.frombuffer(said, np.int64).reshape(-1, 2)}


def _move(store: Store, key: str, reason: str) -> str | None:
    """Copy, note, delete. A copy that an interrupted repair has made is used; any other object there is left alone."""
    try:
        data = store.get(key)
    except MissingObjectError:  # another repair was faster
        return None
    for number in itertools.count(1):
        target = f"{SET_ASIDE_PREFIX}{key}" + (f".{number}" if number > 1 else "")
        if store.create(target, data) == data:
            break
    note = {"key": key, "reason": reason, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    store.create(f"{target}.json", json.dumps(note).encode())
    store.delete(key)
    return target
