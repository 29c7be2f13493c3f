"""The Ray actor of a worker: a `UnitRunner`, with the working directory and torch settings of the run."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from drs_ray.counts.plan import Unit
from drs_ray.counts.run_record import RunRecord, read_record
from drs_ray.engine.outcome import Measured, Outcome
from drs_ray.engine.unit_runner import UnitRunner
from drs_ray.errors import CountsError, StoreError
from drs_ray.models.torch_state import fix_kernels
from drs_ray.storage import Store, open_store


class RemoteWorker:
    """A Ray actor with a `UnitRunner`. `start` is a separate call, so that the driver receives its errors unchanged."""

    def start(self, record_json: bytes, sub_image: int, uri: str, directory: str) -> None:
        """Load data and classifier, and check that the worker's store holds the run."""
        record = _prepare_process(record_json, directory)
        self._store = open_store(uri, record.config.output.endpoint_url)
        _check_sees_run(self._store, record)
        self._runner = UnitRunner(record, sub_image)

    def load(self, record_json: bytes, sub_image: int, directory: str) -> None:
        """`start` for a worker that only measures; the run need not be stored."""
        self._runner = UnitRunner(_prepare_process(record_json, directory), sub_image)

    def measure(self, unit: Unit, seconds: float) -> Measured:
        """See `UnitRunner.measure`."""
        return self._runner.measure(unit, seconds)

    def run(self, unit: Unit, returns_part: bool) -> Outcome:
        """Compute a unit and store its part. The outcome contains the part only if `returns_part`."""
        outcome = self._runner.run(unit, self._store)
        return outcome if returns_part else replace(outcome, part=b"")


def _prepare_process(record_json: bytes, directory: str) -> RunRecord:
    """Parse the record and apply the run's torch settings.

    If the driver's directory exists on this node, it becomes the working directory, for relative paths.
    """
    if Path(directory).is_dir():
        os.chdir(directory)
    record = RunRecord.model_validate_json(record_json)
    fix_kernels(record.config.engine.device, record.config.engine.cpus_per_worker)
    return record


def _check_sees_run(store: Store, record: RunRecord) -> None:
    """Check that this worker sees run.json; in a directory that is not shared, all parts would be lost."""
    try:
        seen = read_record(store).run_id
    except (CountsError, StoreError) as error:
        raise StoreError(
            f"{store.uri}: a worker's node does not see the run there ({error}); "
            "use an s3:// output, or a directory that all nodes share"
        ) from error
    if seen != record.run_id:
        raise StoreError(f"{store.uri}: a worker's node sees run {seen} there, not {record.run_id}; use a shared place")
