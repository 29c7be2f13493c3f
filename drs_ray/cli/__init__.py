"""The `drs-ray` command."""

from drs_ray.cli.commands import app, main

__all__ = ["app", "main"]
