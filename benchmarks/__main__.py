"""`python -m benchmarks [NAME ...]`: run all benchmarks, or those named, and print one table."""

from __future__ import annotations

import os
import platform
import sys

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import (
    audit,
    cluster,
    curve,
    data,
    denoised,
    denoisers,
    driver,
    epochs,
    export,
    forward,
    loop,
    memory,
    noise,
    parts,
    precision,
    reduce,
    report,
    stages,
    startup,
    training,
    worker,
)

BENCHMARKS = {
    "startup": startup,
    "forward": forward,
    "loop": loop,
    "curve": curve,
    "precision": precision,
    "noise": noise,
    "worker": worker,
    "memory": memory,
    "data": data,
    "denoised": denoised,
    "denoisers": denoisers,
    "driver": driver,
    "cluster": cluster,
    "reduce": reduce,
    "parts": parts,
    "export": export,
    "report": report,
    "epochs": epochs,
    "stages": stages,
    "audit": audit,
    "training": training,
}


def machine() -> str:
    """The CPU that was measured: name, cores, and the units that decide how fast bfloat16 is."""
    flags = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
    found = {key: torch.cpu.get_capabilities().get(key) for key in flags}
    units = ", ".join(key for key, there in found.items() if there) or "none of " + ", ".join(flags)
    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__} ({units})"


def main() -> None:
    print(machine(), flush=True)
    table = Table("what", "measured", "aim", title="drs-ray benchmarks")
    for name in sys.argv[1:] or BENCHMARKS:
        for row in BENCHMARKS[name].measure():
            print(*row, sep=" | ", flush=True)
            table.add_row(*row)
    Console().print(table)


main()
