"""Arguments, options and functions that several commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drs_ray.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from drs_ray.config import RunConfig
    from drs_ray.published.imported_run import ReportedRun
    from drs_ray.storage import Store


def place(param: typer.CallbackParam, value: Any) -> Any:
    """One or several paths, URIs or KEY=path of the command line, with variables and `~` expanded."""
    from drs_ray.config import expanded

    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [place(param, one) for one in value]
    try:
        return type(value)(os.path.expanduser(expanded(str(value))))  # noqa: PTH111 - it may be a URI
    except ValueError as error:
        name = param.opts[-1] if param.param_type_name == "option" else param.metavar
        raise ConfigError(f"{name}: {error}, got {value}") from error


ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file (see `drs-ray schema`).", callback=place)
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Directory or s3:// URI of a run.", callback=place)]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. budget.estimation=1000.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="inline, local, auto or ray://host:port; overrides engine.address.")
]
RadiiOption = Annotated[str | None, typer.Option(help="Radii of the table, e.g. 0,0.5,1.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda [default: the run's, where it is here].")]
PlacesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="dataset.root or classifiers.N.checkpoint on this machine.",
        callback=place,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, results only.")]
EndpointOption = Annotated[
    str | None, typer.Option(help="Endpoint of an S3-compatible server [default: AWS_ENDPOINT_URL or AWS].")
]


def load(config: Path, overrides: list[str] | None, address: str | None) -> RunConfig:
    """The config of a command, with overrides."""
    from drs_ray.config import load_config

    return load_config(config, [*(overrides or []), *([f"engine.address={address}"] if address else [])])


def open_run(uri: str, endpoint_url: str | None) -> Store:
    """The store of a command."""
    from drs_ray.storage import open_store

    return open_store(uri, endpoint_url)


def numbers(name: str, text: str | None) -> list[float] | None:
    """The numbers in a text such as 0,0.5,1."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--{name}: must be numbers separated by commas, for example 0,0.5,1; got {text}") from error


def stdout(width: int | None = None) -> Console:
    """The console for results. width: in columns; None: that of the terminal."""
    from rich.console import Console

    return Console(width=width)


def stderr() -> Console:
    """The console for progress and messages."""
    from rich.console import Console

    return Console(stderr=True)


def print_table(results: Sequence[ReportedRun]) -> None:
    """Print the certified accuracy of the runs, side by side."""
    from drs_ray.report.columns import rule_gains
    from drs_ray.report.terminal_table import render_table

    stdout().print(render_table(results))
    for gain in rule_gains(results):
        print(gain.text)
