"""Decides which units to compute next: units without a stored part, and units of a block's next stage.

With a fixed number of samples every unit is known at the start. With adaptive stages, the next stage of a block is
decided as soon as the parts of a stage of all its sub-images are stored, independently of other blocks. The decision is
a function of run.json and the stored counts, so it does not depend on the workers. If a part of the next stage is
stored already, the images in this part are the decision.

Resuming reads only what these decisions need. A block with a part of its last stage and all parts before it needs no
votes: one part of each stage after the first shows the images of this stage. Other blocks may need all their votes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drs_ray.counts.encoding import decode_parts
from drs_ray.counts.history import assemble
from drs_ray.counts.parts import Parts, list_parts, read_units
from drs_ray.counts.plan import Unit, blocks, missing_units, plan_units, stage_units
from drs_ray.counts.rows import Rows, joined
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.outcome import Outcome
from drs_ray.results.selected_votes import open_images
from drs_ray.storage import Store

Block = tuple[int, int]
_BLOCKS = 4096  # blocks resumed together: a decision on many images costs little more than a decision on few


@dataclass
class _Unfinished:
    """A block: stored keys, positions of the images of each stage, and the votes that a decision may need."""

    stored: set[str]
    positions: dict[int, list[int]]
    rows: list[Rows] = field(default_factory=list)


class RemainingUnits:
    """The units of a run. `stored` and `parts`: the units that were stored when `missing` was called, and where."""

    def __init__(self, record: RunRecord, store: Store) -> None:
        """Store the arguments; only `missing` reads parts."""
        self._record = record
        self._store = store
        self._stages = len(record.schedule.samples)
        self._unfinished: dict[Block, _Unfinished] = {}
        # Images by stage: of which the need of it was decided; that need it; whose last known stage it is.
        self._decided: Counter[int] = Counter()
        self._needed: Counter[int] = Counter()
        self._waiting: Counter[int] = Counter()
        self.stored: list[Unit] = []
        self.parts = Parts({}, {}, {})

    @property
    def adaptive(self) -> bool:
        """Whether the run has several stages, so that `done` needs the parts of finished units."""
        return self._stages > 1

    @property
    def later_samples(self) -> float | None:
        """Rough estimate of the noise samples of units that are not known yet; None: no decision to estimate it from.

        Of the images of a stage, the same share as so far will need the next one. One image more is counted, which goes
        on as in the stage before: so the estimate is 0 only when nothing can follow. Units of later stages that were
        lost after they were stored are not in it.
        """
        if not self.adaptive:
            return 0.0
        if not self._decided:
            return None
        share, images, samples = 1.0, 0.0, 0.0
        for stage, (_, each) in enumerate(self._record.schedule.ranges()):
            share = (self._needed[stage] + share) / (self._decided[stage] + 1)
            images *= share
            samples += images * each * self._record.sub_images
            images += self._waiting[stage]
        return samples

    def missing(self) -> list[Unit]:
        """The units that can be computed now and are not stored.

        Raises:
            CountsError: a part that this decision needs cannot be trusted.
        """
        self.parts = list_parts(self._store, self._record)
        if not self.adaptive:
            units = plan_units(self._record)
            self.stored = [unit for unit in units if unit.key in self.parts]
            return missing_units(units, self.parts)
        every = blocks(self._record)
        return [
            unit for start in range(0, len(every), _BLOCKS) for unit in self._resume(every[start : start + _BLOCKS])
        ]

    def done(self, unit: Unit, outcome: Outcome) -> list[Unit]:
        """The units of the next stage, if the finished unit was the last of its block and stage; else none.

        Args:
            unit: the finished unit.
            outcome: its outcome, with its part in an adaptive run.

        Raises:
            CountsError: the part cannot be trusted.
        """
        if not self.adaptive:
            return []
        classes = self._record.dataset.num_classes
        rows = decode_parts([(unit.key, outcome.part)], self._record.run_id, classes).rows
        state = self._unfinished[unit.block]
        state.stored.add(unit.key)
        stage = unit.draws[-1].stage
        if stage < self._stages - 1:
            state.rows.append(rows)
        return self._advance([unit.block]) if state.stored.issuperset(self._keys(unit.block, stage)) else []

    def _resume(self, some: Sequence[Block]) -> list[Unit]:
        """The units of some blocks that can be computed now; records what is stored of these blocks."""
        stored_by_stage: dict[Block, list[list[str]]] = {}  # keys by stage
        owner: dict[str, tuple[Block, int]] = {}  # block and stage of the parts to be read
        positions: dict[Block, dict[int, list[int]]] = {}
        voting = set()  # blocks whose votes a decision may need
        for block in some:
            keys = [self._keys(block, stage) for stage in range(self._stages)]
            stored = stored_by_stage[block] = [[key for key in stage if key in self.parts] for stage in keys]
            positions[block] = {0: list(range(block[0], block[1] + 1))}
            if stored[:-1] != keys[:-1] or not stored[-1]:
                voting.add(block)
            if stored != keys:
                self._unfinished[block] = _Unfinished({key for group in stored for key in group}, positions[block])
            for stage, group in enumerate(stored):
                owner |= dict.fromkeys(group if block in voting else group[: min(stage, 1)], (block, stage))
        for read in read_units(self._store, self._record, self.parts, owner):
            for key, where in read.slices().items():
                block, stage = owner[key]
                if stage not in positions[block]:
                    positions[block][stage] = self._positions(block, read.rows.image_id[where])
                if block in voting:
                    self._unfinished[block].rows.append(read.rows.between(where.start, where.stop))
        for block in some:
            for stage in range(1, self._stages):
                if stage in positions[block] and stage - 1 in positions[block]:
                    self._decide(stage, positions[block][stage - 1], positions[block][stage])
            self._wait(positions[block], 1)
            for stage, group in enumerate(stored_by_stage[block]):
                if group:
                    stored_keys = set(group)
                    units = stage_units(self._record, block, stage, positions[block][stage])
                    self.stored += [unit for unit in units if unit.key in stored_keys]
        return self._advance([block for block in some if block in self._unfinished])

    def _advance(self, some: Sequence[Block]) -> list[Unit]:
        """The missing units of the first incomplete stage of each block. No unit of these blocks may be in progress."""
        todo: dict[Block, list[Unit]] = {}
        deciding: list[tuple[Block, int]] = []
        for block in some:
            state = self._unfinished[block]
            stages = range(self._stages)
            stage = next((s for s in stages if not state.stored.issuperset(self._keys(block, s))), self._stages)
            if stage == self._stages:
                del self._unfinished[block]
            elif stage in state.positions:
                units = stage_units(self._record, block, stage, state.positions[stage])
                todo[block] = [unit for unit in units if unit.key not in state.stored]
            else:
                deciding.append((block, stage))
        for (block, stage), positions in zip(deciding, self._open(deciding), strict=True):
            state = self._unfinished[block]
            self._decide(stage, state.positions[stage - 1], positions)
            self._wait(state.positions, -1)
            if positions:
                state.positions[stage] = positions
                self._wait(state.positions, 1)
                todo[block] = stage_units(self._record, block, stage, positions)
            else:
                del self._unfinished[block]
        return [unit for block in some for unit in todo.get(block, [])]

    def _open(self, deciding: Sequence[tuple[Block, int]]) -> list[list[int]]:
        """For each block and stage: positions of the images of the stage before that need this stage."""
        if not deciding:
            return []
        states = [self._unfinished[block] for block, _ in deciding]
        ids = [i for (first, last), _ in deciding for i in self._record.image_ids[first : last + 1]]
        # If a part of a middle stage was lost, parts of later stages may be stored; their votes are not used.
        before = [
            rows
            for (_, stage), state in zip(deciding, states, strict=True)
            for rows in state.rows
            if rows.stage.max() < stage
        ]
        rows = joined(before)
        answer = open_images(assemble(rows, self._record, ids), self._record)
        found, start = [], 0
        for ((first, last), stage), state in zip(deciding, states, strict=True):
            found.append([position for position in state.positions[stage - 1] if answer[start + position - first]])
            start += last - first + 1
        return found

    def _decide(self, stage: int, before: Sequence[int], positions: Sequence[int]) -> None:
        """Note that of the images of the stage before, `positions` need this stage."""
        self._decided[stage] += len(before)
        self._needed[stage] += len(positions)

    def _wait(self, positions: Mapping[int, Sequence[int]], sign: int) -> None:
        """Count a block's images as those of their last known stage, or no longer."""
        self._waiting[max(positions)] += sign * len(positions[max(positions)])

    def _keys(self, block: Block, stage: int) -> list[str]:
        return [unit.key for unit in stage_units(self._record, block, stage, ())]

    def _positions(self, block: Block, image_ids: NDArray[np.int64]) -> list[int]:
        """Positions of a part's images, which belong to `block`; image ids need not be sorted by position."""
        ids = np.asarray(self._record.image_ids[block[0] : block[1] + 1])
        return [block[0] + int(at) for at in np.flatnonzero(np.isin(ids, image_ids))]
