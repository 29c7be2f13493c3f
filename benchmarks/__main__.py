"""`python -m benchmarks [NAME ...]`: run all benchmarks, or those named, and print one table."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from benchmarks import (
    audit,
    cluster,
    data,
    driver,
    export,
    loop,
    memory,
    noise,
    parts,
    reduce,
    report,
    startup,
    training,
    worker,
)

BENCHMARKS = {
    "startup": startup,
    "loop": loop,
    "noise": noise,
    "worker": worker,
    "memory": memory,
    "data": data,
    "driver": driver,
    "cluster": cluster,
    "reduce": reduce,
    "parts": parts,
    "export": export,
    "report": report,
    "audit": audit,
    "training": training,
}


def main() -> None:
    table = Table("what", "measured", "aim", title="drs-ray benchmarks")
    for name in sys.argv[1:] or BENCHMARKS:
        for row in BENCHMARKS[name].measure():
            print(*row, sep=" | ", flush=True)
            table.add_row(*row)
    Console().print(table)


main()
