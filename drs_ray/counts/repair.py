"""Finds counts that cannot be trusted and moves them aside, so that the next `drs-ray certify` computes them again.

Wrong votes with a correct sum cannot be found in the stored bytes: the user names such units (`drs-ray verify` finds
them). Certificates and curve are moved with their counts, because without counts they prove nothing. moving_aside.py
says how objects are moved and why nothing is lost.

A driver that runs at the same time may not notice that a unit it has finished was moved aside. Its run then ends with a
message that names what is missing, and can be resumed. A compactor may write a unit again that it has already read.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping

import numpy as np

from drs_ray.counts.encoding import UnitRows
from drs_ray.counts.merged_parts import digests
from drs_ray.counts.moving_aside import Finding, move, take_out
from drs_ray.counts.part_checks import PartChecker
from drs_ray.counts.parts import COMPACTED_AHEAD, Parts, fetch, fetch_batches, list_parts, survey
from drs_ray.counts.rows import UnsoundError
from drs_ray.counts.run_record import RunRecord
from drs_ray.counts.schema import CERTIFICATES_KEY, COMPACTED_PREFIX, CURVE_KEY
from drs_ray.counts.unit_keys import RunUnits, UnitName
from drs_ray.errors import ConfigError, CountsError
from drs_ray.storage import Store

_DERIVED = "derived from counts that cannot be trusted"
_NAMED = "named as wrong by who ran repair"


def repair_run(
    store: Store,
    record: RunRecord,
    *,
    dry_run: bool = False,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """Check every object of a run's counts, and move aside those that cannot be trusted.

    Args:
        store: the run's store.
        record: its run.json.
        dry_run: change nothing.
        on_finding: called with each finding as soon as it was moved (in a dry run: found).

    Raises:
        StoreError: the store cannot be read or written.
    """
    found = []
    for key, reason in find_unsound(store, record).items():
        finding = Finding(key, reason) if dry_run else move(store, key, reason)
        on_finding(finding)
        found.append(finding)
    return found


def repair_units(
    store: Store,
    record: RunRecord,
    keys: Iterable[str],
    *,
    dry_run: bool = False,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """Move aside units that the user names, and everything decided from their votes. Nothing else is checked.

    In an adaptive run the votes of a stage decide which images of the block are drawn further. So the units of the
    block's later stages are moved too, before the unit itself: stored parts always follow from stored votes.

    Args:
        store: the run's store.
        record: its run.json.
        keys: keys of units, as `drs-ray verify` names them. Units that are not stored are ignored.
        dry_run: change nothing.
        on_finding: called with each finding as soon as it was moved (in a dry run: found).

    Raises:
        ConfigError: no unit of the run has this key.
        UnsoundError: a compacted object cannot be trusted; `repair_run` must be run first.
        CountsError: a compactor has written a unit again.
        StoreError: the store cannot be read or written.
    """
    found: list[Finding] = []
    parts = list_parts(store, record)
    reasons = _reasons(parts, record, keys)
    derived = [(key, {key: _DERIVED}) for key in (_derived(store) if reasons else ())]
    for name, mine in [*derived, *_holders(parts, record, reasons)]:
        if dry_run:
            findings = [Finding(key, reason) for key, reason in mine.items()]
        elif name in parts.compacted:
            findings = take_out(store, record, name, mine)
        else:
            findings = [move(store, name, mine[name])]
        for finding in findings:
            on_finding(finding)
        found += findings
    back = () if dry_run else sorted(list_parts(store, record).holder.keys() & reasons.keys())
    if back:
        raise CountsError(
            f"{store.uri}: {back[0]} was moved aside and is in {COMPACTED_PREFIX}... again: another `drs-ray compact` "
            "or `repair` is at work; run the same command again when it has ended"
        )
    return found


def find_unsound(store: Store, record: RunRecord) -> dict[str, str]:
    """The objects that cannot be trusted, in the order in which they must be moved, with the reasons.

    Raises:
        StoreError: the store cannot be read.
    """
    parts, unsound = survey(store, record)
    checker, blocks = PartChecker(record), _Blocks()
    expected: dict[str, str] = {}  # digests of compacted units that also have a small part
    for key, data in fetch(store, sorted(parts.compacted), COMPACTED_AHEAD):
        try:
            if data is not None:
                units = checker.compacted(data, key)
                entries = zip(units.keys, digests(units), strict=True)
                expected |= {unit: digest for unit, digest in entries if unit in parts.small}
                blocks.add(units, checker, set())
        except UnsoundError as error:
            unsound[error.key] = error.reason
    for batch in fetch_batches(store, sorted([*parts.small, *parts.foreign])):
        sound, reasons = checker.small([(key, data) for key, data in batch if data is not None])
        unsound |= reasons
        for units in sound:
            held = zip(units.keys, digests(units), strict=True)
            other = {unit for unit, digest in held if expected.get(unit, digest) != digest}
            unsound |= {unit: f"differs from the same unit in {parts.holder[unit]}" for unit in other}
            blocks.add(units, checker, other)
    for unit, reason in blocks.contradictions():
        unsound.setdefault(parts.holder.get(unit, unit), f"{unit}: {reason}" if unit in parts.holder else reason)
    in_use = {key for key in unsound if key not in parts.holder and key not in parts.foreign}
    first = dict.fromkeys(_derived(store), _DERIVED) if in_use else {}
    return first | dict(sorted(unsound.items()))  # certificates are moved before their counts


def _derived(store: Store) -> list[str]:
    """Keys of the stored certificates and curve."""
    return [item.key for key in (CERTIFICATES_KEY, CURVE_KEY) for item in store.list(key) if item.key == key]


def _reasons(parts: Parts, record: RunRecord, keys: Iterable[str]) -> dict[str, str]:
    """The stored units that are named, or were decided from the votes of a named unit, with the reasons."""
    units = RunUnits(record)
    named: set[UnitName] = set()
    for key in keys:
        name = units.parse(key)
        if name is None:
            raise ConfigError(f"--unit {key}: no unit of this run has this key; give it as `drs-ray verify` names it")
        named.add(name)
    earliest: dict[tuple[int, int], UnitName] = {}
    for name in sorted(named, key=lambda name: (-name.stage, name.key)):
        earliest[name.block] = name
    reasons = {}
    for key in parts:
        name = units.parse(key)
        if name in named:
            reasons[key] = _NAMED
        elif name is not None and name.block in earliest and name.stage > earliest[name.block].stage:
            reasons[key] = f"follows from the votes of {earliest[name.block].key}"
    return reasons


def _holders(parts: Parts, record: RunRecord, reasons: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """The objects with any of these units, and the reasons of their units; objects with later stages come first."""
    units = RunUnits(record)
    every = [(name, [entry.key for entry in entries]) for name, entries in parts.compacted.items()]
    every += [(key, [key]) for key in parts.small]
    held = [(name, {key: reasons[key] for key in keys if key in reasons}) for name, keys in every]

    def first_stage(item: tuple[str, dict[str, str]]) -> int:
        return min(name.stage for key in item[1] if (name := units.parse(key)) is not None)

    return sorted((item for item in held if item[1]), key=first_stage, reverse=True)


class _Blocks:
    """Images and labels of parts by block and stage: equal for parts of one stage, and a subset of the stage before."""

    def __init__(self) -> None:
        self._images: dict[tuple[int, int], dict[int, dict[bytes, list[str]]]] = {}  # keys by block, stage, content

    def add(self, units: UnitRows, checker: PartChecker, excluded: Container[str]) -> None:
        """Record the images and labels of sound units, except for the keys in `excluded`."""
        for key, mine in units.slices().items():
            if key not in excluded:
                name = checker.name(key)
                ids, first = np.unique(units.rows.image_id[mine], return_index=True)
                images = np.stack([ids, units.rows.label[mine][first]], axis=1).tobytes()
                self._images.setdefault(name.block, {}).setdefault(name.stage, {}).setdefault(images, []).append(key)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Units that contradict each other, with the reasons; it is unknown which of them are wrong."""
        for stages in self._images.values():
            for stage, images in sorted(stages.items()):
                before = stages.get(stage - 1, {})
                if len(images) > 1:
                    reason = "other images or labels than another part of the same block and stage"
                    yield from ((key, reason) for keys in images.values() for key in keys)
                elif len(before) == 1 and not _pairs(*images) <= _pairs(*before):
                    reason = "images or labels of this block's stages do not fit together"
                    yield from ((key, reason) for keys in (*images.values(), *before.values()) for key in keys)


def _pairs(images: bytes) -> set[tuple[int, int]]:
    return {(int(image), int(label)) for image, label in np.frombuffer(images, np.int64).reshape(-1, 2)}
