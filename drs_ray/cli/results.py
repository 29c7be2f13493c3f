"""Commands that compute certificates, tables and pages from stored counts, and import published logs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from drs_ray.cli.options import (
    EndpointOption,
    RadiiOption,
    RunArgument,
    numbers,
    open_run,
    place,
    print_table,
    stdout,
)
from drs_ray.errors import ConfigError


def reduce(
    run: RunArgument,
    alpha: Annotated[float | None, typer.Option(help="Failure probability of a certificate.")] = None,
    vote: Annotated[str | None, typer.Option(help="probit or mean.")] = None,
    radius: Annotated[float | None, typer.Option(help="Certify this one radius, or nothing.")] = None,
    radii: RadiiOption = None,
    endpoint_url: EndpointOption = None,
) -> None:
    """Compute certificates and curve again from the stored counts. Needs no torch, no Ray, no GPU."""
    import drs_ray

    changes = {"alpha": alpha, "vote": vote, "radius": radius, "radii": None if radii is None else radii.split(",")}
    chosen: Any = {key: value for key, value in changes.items() if value is not None}
    print_table([drs_ray.reduce(run, endpoint_url=endpoint_url, **chosen)])


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="One or more reduced runs.", callback=place)],
    output: Annotated[
        str | None, typer.Option(help="Where the report goes [default: the first run].", callback=place)
    ] = None,
    compare_rules: Annotated[
        bool, typer.Option("--compare-rules", help="Beside each run, what the plain rule makes of the same counts.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="One run that is not finished, as far as it is, and marked as such.")
    ] = False,
    common: Annotated[
        bool, typer.Option("--common", help="Runs on different images: compare those that all have, and say how many.")
    ] = False,
    endpoint_url: EndpointOption = None,
) -> None:
    """Print the table of one or several runs and write report.html and the figure."""
    from drs_ray.published.imported_run import read_reported_run
    from drs_ray.report.columns import read_columns, read_partial_columns
    from drs_ray.report.page import write_report
    from drs_ray.report.terminal_table import render_convergence
    from drs_ray.report.thumbnails import thumbnails

    stores = [open_run(run, endpoint_url) for run in runs]
    if partial:
        if common:
            raise ConfigError("--common: is for several finished runs; leave it out, or --partial")
        if len(stores) > 1:
            raise ConfigError(
                f"--partial: takes one RUN, got {len(stores)}: an unfinished run has come to other images than the "
                "others; report it on its own, or finish it"
            )
        columns = read_partial_columns(stores[0], compare_rules=compare_rules)
    else:
        shown = [(read_reported_run(store), store) for store in stores]
        columns = read_columns(shown, compare_rules=compare_rules, common=common)
    target = open_run(output or runs[0], endpoint_url)
    print_table(columns.results)
    if columns.convergence:
        stdout().print(render_convergence(columns))
    for key in write_report(columns, target, thumbnails):
        print(f"{target.uri}/{key}")


def export(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="A reduced or imported run; several for tables.", callback=place),
    ],
    format_: Annotated[
        str, typer.Option("--format", help="tsv or csv (every image), markdown or latex (certified accuracy at radii).")
    ],
    output: Annotated[
        str | None, typer.Option(help="File or s3:// object to write [default: stdout].", callback=place)
    ] = None,
    radii: RadiiOption = None,
    endpoint_url: EndpointOption = None,
) -> None:
    """Write runs in the field's log format, as csv, or as a table for a paper."""
    from drs_ray.published.imported_run import read_reported_run
    from drs_ray.report.export import export
    from drs_ray.storage import open_place_of

    results = [read_reported_run(open_run(run, endpoint_url)) for run in runs]
    text = export(results, format_, numbers("radii", radii))
    if output is None:
        print(text, end="")
        return
    place, _, name = output.rpartition("/")
    if not name or place.endswith(":/"):
        raise ConfigError(f"--output: {output} names no file; give one, for example drs.tsv or s3://bucket/drs.tsv")
    store, key = open_place_of(output, endpoint_url)
    store.put(key, text.encode())
    print(output)


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Log in a format of certify.py or predict.py.", callback=place)
    ],
    run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or s3:// URI to keep it in.", callback=place)],
    dataset: Annotated[str, typer.Option(help="Name of the data set, as in configs.")],
    sigma: Annotated[str, typer.Option(help="Noise level, one for each sub-image: 0.5 or 0.36,0.36.")],
    n: Annotated[int, typer.Option(help="Estimation samples per image and sub-image.")],
    alpha: Annotated[float, typer.Option(help="Failure probability of a certificate.")],
    n0: Annotated[
        int | None, typer.Option(help="Selection samples per image and sub-image [default: 100; of predictions 0].")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "test",
    radius_rule: Annotated[
        str, typer.Option(help="How margins of sub-images were joined: linear, square-root, clipped or unknown.")
    ] = "unknown",
    radius: Annotated[
        float | None,
        typer.Option(help="The radius that was asked for, where the log says only whether it was certified."),
    ] = None,
    radii: RadiiOption = None,
    endpoint_url: EndpointOption = None,
) -> None:
    """Import a published log as a run to compare with. It is always marked as imported, not verified."""
    from drs_ray.published.imported_run import import_log, read_log

    result = import_log(
        open_run(run, endpoint_url),
        read_log(file),
        file.name,
        dataset=dataset,
        split=split,
        sigmas=numbers("sigma", sigma) or [],
        estimation=n,
        selection=n0,
        alpha=alpha,
        radius_rule=radius_rule,
        radius=radius,
        radii=numbers("radii", radii),
    )
    print_table([result])
    for warning in result.record.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"imported, not verified: {result.uri}/certificates.parquet")


def certificate(
    run: RunArgument,
    image_id: Annotated[int, typer.Argument(metavar="IMAGE_ID", help="An image of the run.")],
    endpoint_url: EndpointOption = None,
) -> None:
    """Print a certificate's votes, levels and bounds, and the inequality that gives its radius, in numbers."""
    from drs_ray.cli.certificate_text import certificate_values
    from drs_ray.cli.key_values import key_value_table
    from drs_ray.results.image_certificate import read_certificate

    values = certificate_values(read_certificate(open_run(run, endpoint_url), image_id))
    unbroken = None if sys.stdout.isatty() else 1000  # a formula in a file is one line
    stdout(unbroken).print(key_value_table(values))
