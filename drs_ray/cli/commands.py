"""The `drs-ray` command and its subcommands, in the order of `--help`. They import torch and Ray only if needed."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from drs_ray.cli import checking, preparing, results, running, upkeep
from drs_ray.errors import DrsError, InterruptedRunError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(*before: str) -> None:
    """Run the command line. Errors that drs-ray raises on purpose become one line and an exit code.

    Args:
        before: arguments before those of the process; each file of jobs/ gives the name of its command.
    """
    try:
        app([*before, *sys.argv[1:]])
    except (DrsError, InterruptedRunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"drs-ray {version('drs-ray')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Certify image classifiers by randomized smoothing (RS) and dual randomized smoothing (DRS), on Ray."""


_COMMANDS = (
    (running.demo, "drs-ray demo --directory runs/demo"),
    (running.plan, "drs-ray plan config.yaml --set budget.estimation=100000 --price 2.5"),
    (running.certify, "drs-ray certify config.yaml --set output=s3://bucket/run --address auto"),
    (running.submit, "drs-ray submit config.yaml --address http://127.0.0.1:8265"),
    (running.status, "drs-ray status s3://bucket/run"),
    (results.reduce, "drs-ray reduce runs/demo/drs --alpha 0.01"),
    (results.report, "drs-ray report runs/demo/rs runs/demo/drs --output runs/demo"),
    (results.export, "drs-ray export runs/demo/drs --format tsv --output drs.tsv"),
    (results.import_, "drs-ray import log.tsv runs/cohen --dataset cifar10 --sigma 0.5 --n 100000 --alpha 0.001"),
    (results.certificate, "drs-ray certificate runs/demo/drs 0"),
    (checking.verify, "drs-ray verify s3://bucket/run --units 20"),
    (checking.audit, "drs-ray audit s3://bucket/run"),
    (checking.attack, "drs-ray attack s3://bucket/run --images 50 --output attack.parquet"),
    (upkeep.compact, "drs-ray compact s3://bucket/run"),
    (upkeep.repair, "drs-ray repair s3://bucket/run --dry-run"),
    (preparing.pack, "drs-ray pack config.yaml s3://bucket/cifar10 --set dataset.split=train"),
    (preparing.train, "drs-ray train config.yaml --set training.epochs=30"),
    (preparing.schema, "drs-ray schema > drs-ray.schema.json"),
)
"""The commands, each with an example for its help."""

for _command, _example in _COMMANDS:
    app.command(_command.__name__.rstrip("_"), epilog=f"Example: `{_example}`")(_command)
