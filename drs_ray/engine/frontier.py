"""What is to be done next: the units that are missing now, and those that a finished stage calls for.

With a fixed number of samples every unit is known at the start. With adaptive stages a block's next stage is decided
as soon as all its sub-images' parts of a stage are there, for that block alone: no barrier across the run. The decision
is a function of run.json and the stored counts, so it is the same whatever the workers do; and where a part of the next
stage is stored already, its images are the decision.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from drs_ray.engine.outcome import Outcome
from drs_ray.engine.plan import Unit, blocks, missing_units, plan_units, stage_units
from drs_ray.results.counts import assemble, decode_part
from drs_ray.results.evidence import open_images
from drs_ray.results.run_record import RunRecord
from drs_ray.results.schema import COUNTS_PREFIX
from drs_ray.results.store import Store

Block = tuple[int, int]
_READERS = 16


class Frontier:
    """The units of a run as they become known. `stored` are those that were there when `missing` was called."""

    def __init__(self, record: RunRecord, store: Store) -> None:
        """Nothing is read before `missing` is called."""
        self._record = record
        self._store = store
        self._parts: dict[Block, dict[str, pa.Table]] = {}
        self.stored: list[Unit] = []

    @property
    def adaptive(self) -> bool:
        """Whether finished units can call for further ones, so that their parts must be handed to `done`."""
        return len(self._record.schedule.samples) > 1

    def missing(self) -> list[Unit]:
        """What is to be done now, from what is stored."""
        if not self.adaptive:
            units = plan_units(self._record)
            todo = missing_units(units, self._store)
            absent = set(todo)
            self.stored = [unit for unit in units if unit not in absent]
            return todo
        keys = [item.key for item in self._store.list(COUNTS_PREFIX)]
        with ThreadPoolExecutor(_READERS) as pool:
            tables = dict(zip(keys, pool.map(self._read, keys), strict=True))
        todo = []
        for first, last in blocks(self._record):
            todo += self._next((first, last), tables, self.stored)
        return todo

    def done(self, unit: Unit, outcome: Outcome) -> list[Unit]:
        """The units that a finished one calls for: none, unless it was the last of its block and stage.

        Args:
            unit: what was done.
            outcome: with its part.

        Raises:
            CountsError: a part that cannot be trusted.
        """
        parts = self._parts.setdefault(unit.block, {})
        assert outcome.part is not None
        parts[unit.key] = decode_part(outcome.part, unit.key, self._record.run_id, self._record.dataset.num_classes)
        if self._siblings(unit) - parts.keys():
            return []
        todo = self._next(unit.block, parts, [])
        if not todo:
            del self._parts[unit.block]
        return todo

    def _read(self, key: str) -> pa.Table:
        return decode_part(self._store.get(key), key, self._record.run_id, self._record.dataset.num_classes)

    def _siblings(self, unit: Unit) -> set[str]:
        stage = unit.draws[-1].stage
        return {sibling.key for sibling in stage_units(self._record, unit.block, stage, unit.positions)}

    def _next(self, block: Block, tables: dict[str, pa.Table], stored: list[Unit]) -> list[Unit]:
        """The missing units of the first stage of a block that is not complete; none where the block is done.

        Units whose parts are among `tables` are added to `stored`.
        """
        positions = list(range(block[0], block[1] + 1))
        mine: dict[str, pa.Table] = {}
        for stage in range(len(self._record.schedule.samples)):
            units = stage_units(self._record, block, stage, positions)
            there = [unit.key for unit in units if unit.key in tables]
            if stage and there:
                positions = self._positions_in(block, tables[there[0]])
                units = stage_units(self._record, block, stage, positions)
            mine |= {key: tables[key] for key in there}
            stored += [unit for unit in units if unit.key in mine]
            if len(there) < len(units):
                self._parts[block] = mine
                return [unit for unit in units if unit.key not in mine]
            positions = self._open(block, positions, mine.values())
            if not positions:
                break
        return []

    def _open(self, block: Block, positions: list[int], tables: Iterable[pa.Table]) -> list[int]:
        """Which of the images that were drawn last need the next stage."""
        ids = self._record.image_ids[block[0] : block[1] + 1]
        answer = open_images(assemble(list(tables), self._record, ids), self._record)
        return [position for position in positions if answer[position - block[0]]]

    def _positions_in(self, block: Block, table: pa.Table) -> list[int]:
        """Positions of a part's images, all of its block; the order of image ids need not be theirs."""
        ids = np.asarray(self._record.image_ids[block[0] : block[1] + 1])
        return [block[0] + int(at) for at in np.flatnonzero(np.isin(ids, table["image_id"].to_numpy()))]
