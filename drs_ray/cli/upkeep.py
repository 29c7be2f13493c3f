"""Commands that compact and repair a run's stored counts."""

from __future__ import annotations

from typing import Annotated

import typer

from drs_ray.cli.options import EndpointOption, RunArgument, open_run
from drs_ray.errors import counted


def compact(run: RunArgument, endpoint_url: EndpointOption = None) -> None:
    """Merge a run's small parts into few large objects. Safe at any time, also while the run goes on."""
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.counts.compaction import compact_run
    from drs_ray.counts.run_record import read_record

    store = open_run(run, endpoint_url)
    with interruptible("no part is lost; run the same command to go on"):
        done = compact_run(store, read_record(store))
    merged, into = counted(done.units, "unit"), counted(len(done.objects), "object")
    print(f"{merged} merged into {into}, {counted(done.deleted, 'small part')} deleted")
    for key, reason in done.unsound.items():
        print(f"left alone: {key}: {reason}")
    done.check(run)


def repair(
    run: RunArgument,
    unit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Check nothing; move this unit aside, as verify names it, and what follows from its votes; repeatable",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be moved aside.")] = False,
    endpoint_url: EndpointOption = None,
) -> None:
    """Check all counts of a run, and move aside what cannot be trusted, so that certify computes it again."""
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.counts.moving_aside import Finding
    from drs_ray.counts.repair import repair_run, repair_units
    from drs_ray.counts.run_record import read_record

    def on_finding(finding: Finding) -> None:
        print(finding.text)

    store = open_run(run, endpoint_url)
    with interruptible("nothing is lost; run the same command to go on"):
        record = read_record(store)
        if unit:
            found = repair_units(store, record, unit, dry_run=dry_run, on_finding=on_finding)
        else:
            found = repair_run(store, record, dry_run=dry_run, on_finding=on_finding)
    if not found:
        print("none of these units is stored" if unit else "all counts can be trusted")
    elif dry_run:
        print(f"{len(found):,} would be moved aside; nothing was changed")
    else:
        print(
            f"{len(found):,} moved to {store.uri}/set-aside; run `drs-ray certify` with the run's config to "
            "compute what is missing and to reduce again"
        )
