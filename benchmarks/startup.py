"""How long `drs-ray --help` takes, beside an empty Python."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

ROUNDS = 7


def measure() -> Iterator[tuple[str, str, str]]:
    empty, help_ = [], []
    for _ in range(ROUNDS):
        empty.append(_seconds([sys.executable, "-c", ""]))
        help_.append(_seconds([sys.executable, "-c", "from drs_ray.cli import main; main()", "--help"]))
    seconds, bare = statistics.median(help_), statistics.median(empty)
    yield "drs-ray --help", f"{seconds:.2f} s (python alone {bare:.2f} s)", "< 0.5 s"


def _seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started
