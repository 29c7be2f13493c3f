"""Small certification runs for the engine's tests, and the digest that two equal runs share."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from drs_ray.cli import main
from drs_ray.config import RunConfig, parse_config
from drs_ray.counts.parts import list_parts, read_units
from drs_ray.counts.run_record import read_record
from drs_ray.storage import Store, open_store

BATCH = 50
FACTORY = "tests.support.classifiers"


def run_data(
    output: Path | str, *, address: str = "inline", images: int = 12, factory: str = "prototypes", **arguments: Any
) -> dict[str, Any]:
    """A DRS run of a cheap classifier on real digits, as plain data: seconds, also with Ray."""
    classifier = {"architecture": f"{FACTORY}:{factory}", "arguments": arguments, "sigma": 0.5}
    return {
        "dataset": {"name": "mnist5k", "images": {"stop": images}},
        "partition": {"name": "checkerboard"},
        "classifiers": [classifier, classifier | {"sigma": 0.25}],
        "noise": {"block": 100},
        "budget": {"selection": 50, "estimation": 400},
        "engine": {"address": address, "batch": BATCH, "images_per_unit": 3, "cpus_per_worker": 0.5},
        "output": str(output),
    }


def run_config(output: Path | str, **options: Any) -> RunConfig:
    """`run_data`, validated."""
    return parse_config(run_data(output, **options))


def write_config(file: Path, data: dict[str, Any]) -> Path:
    """Write a config as YAML."""
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    return file


def decoded_counts(store: Store | Path | str) -> list[str]:
    """All rows of a run's counts, as text, in an order that does not depend on how the work was cut."""
    if not hasattr(store, "list"):
        store = open_store(str(store))
    record = read_record(store)
    rows: list[str] = []
    for units in read_units(store, record, list_parts(store, record)):
        rows += [json.dumps({**row, "votes": sorted(row["votes"])}, sort_keys=True) for row in units.table.to_pylist()]
    return sorted(rows)


def counts_digest(store: Store | Path | str) -> str:
    """SHA-256 over all decoded counts."""
    return hashlib.sha256("\n".join(decoded_counts(store)).encode()).hexdigest()


def resumed_line(stored: int, todo: int) -> str:
    """What a resumed run prints of its units."""
    return f"{stored} unit{' is' if stored == 1 else 's are'} stored, {todo} {'is' if todo == 1 else 'are'} to do"


def stored_parts(run: Path) -> int:
    """How many parts a run in a directory has."""
    return len(list((run / "counts").rglob("i*.parquet")))


class Driver(subprocess.Popen[bytes]):
    """`drs-ray certify` in a process of its own. All that drivers of one config print goes to one file."""

    def __init__(
        self, config: Path, environment: Mapping[str, str], *options: str, subcommand: str = "certify"
    ) -> None:
        self._file = config.with_suffix(".log")
        with self._file.open("ab") as log:
            super().__init__(command([subcommand, str(config), *options]), env=environment, stdout=log, stderr=log)

    @property
    def text(self) -> str:
        """What it, and drivers before it, have printed."""
        return self._file.read_text(encoding="utf-8", errors="replace")

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = 300.0) -> None:
        """Return when the condition holds; fail when the driver ends before, or it takes too long."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.poll() is None, f"the driver ended before {what}: {self.text}"
            assert time.monotonic() < deadline, f"waited in vain for {what}: {self.text}"
            time.sleep(0.05)


def drs_ray(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, in a process of its own."""
    return subprocess.run(command(arguments), capture_output=True, text=True, timeout=300, **options)


def drs_ray_here(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has imported torch already: for tests that are not about processes."""
    printed, told = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(told),
        patch.object(sys, "argv", ["drs-ray", *arguments]),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int)  # the command line always ends with one
    return subprocess.CompletedProcess(list(arguments), code, printed.getvalue(), told.getvalue())


_KILLED = """
import os, signal, sys
name, part, nth = sys.argv[1], sys.argv[2], int(sys.argv[3])
del sys.argv[1:4]
real, calls = getattr(os, name), []
def killing(source, target):
    calls.extend([target] if part in str(target) else [])
    if len(calls) == nth:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
setattr(os, name, killing)
from drs_ray.cli import main
main()
"""


def killed_at(name: str, part: str, nth: int, config: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """`certify` in a process that is killed when its nth os.`name`, replace or link, to such a path is due."""
    arguments = [sys.executable, "-c", _KILLED, name, part, str(nth), "certify", str(config)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False, **options)


def command(arguments: Sequence[str]) -> list[str]:
    """The command line of `drs-ray` in this interpreter."""
    return [sys.executable, "-c", "from drs_ray.cli import main; main()", *arguments]
