"""Checks the objects of a run's counts one by one, for `compact` and `repair`."""

from __future__ import annotations

from collections.abc import Sequence

from drs_ray.counts.encoding import UnitRows, decode_parts
from drs_ray.counts.merged_parts import decode_compacted, digests, read_index
from drs_ray.counts.rows import UnsoundError
from drs_ray.counts.run_record import RunRecord
from drs_ray.counts.unit_keys import RunUnits, UnitName


class PartChecker:
    """Checks objects of a run. A sound object holds exactly the samples of the units that it names."""

    def __init__(self, record: RunRecord) -> None:
        """record: the run.json; nothing else is read."""
        self._record = record
        self._units = RunUnits(record)

    def name(self, key: str) -> UnitName:
        """The unit name in the key of a small part.

        Raises:
            UnsoundError: no unit of the run has this key.
        """
        name = self._units.parse(key)
        if name is None:
            raise UnsoundError(key, "no unit of this run has this key")
        return name

    def small(self, parts: Sequence[tuple[str, bytes]]) -> tuple[list[UnitRows], dict[str, str]]:
        """The sound parts among small parts, in order, and the reason for each other part."""
        try:
            return ([self._small(parts)] if parts else []), {}
        except UnsoundError as error:
            if len(parts) == 1:
                return [], {error.key: error.reason}
        sound: list[UnitRows] = []
        unsound: dict[str, str] = {}
        for part in parts:
            mine, reasons = self.small([part])
            sound += mine
            unsound |= reasons
        return sound, unsound

    def compacted(self, data: bytes, key: str) -> UnitRows:
        """All units of a compacted object.

        Raises:
            UnsoundError: it cannot be trusted.
        """
        units = decode_compacted(data, key, self._record)
        for entry, digest in zip(read_index(data, key, self._record.run_id), digests(units), strict=True):
            if entry.digest != digest:
                raise UnsoundError(key, f"{entry.key}: its rows are not those that were merged")
        return units

    def _small(self, parts: Sequence[tuple[str, bytes]]) -> UnitRows:
        names = [self.name(key) for key, _ in parts]
        units = decode_parts(parts, self._record.run_id, self._record.dataset.num_classes)
        misplaced = self._units.misplaced(units.rows, names, units.lengths)
        if misplaced is not None:
            raise UnsoundError(parts[misplaced[0]][0], misplaced[1])
        return units
