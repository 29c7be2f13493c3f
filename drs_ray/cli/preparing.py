"""Commands that prepare a run: its data, its classifiers, its configuration."""

from __future__ import annotations

from typing import Annotated

import typer

from drs_ray.cli.options import ConfigArgument, EndpointOption, QuietOption, SetOption, load, open_run, place, stderr
from drs_ray.errors import counted


def pack(
    config: ConfigArgument,
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Directory or s3:// URI; the split goes below it.", callback=place),
    ],
    set_: SetOption = None,
    endpoint_url: EndpointOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write all images of the config's data set as Parquet, for the data set `parquet`. No other section is needed."""
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.cli.progress import pack_with_progress
    from drs_ray.config import load_dataset_config

    store = open_run(out, endpoint_url)
    with interruptible("nothing can be read there yet; run the same command to start over"):
        index, was_there = pack_with_progress(load_dataset_config(config, set_ or ()), store, stderr(), quiet)
    shape = " x ".join(str(size) for size in index.image_shape)
    print(
        f"{counted(index.images, 'image')} ({shape}, {counted(index.num_classes, 'class')}) "
        f"{'packed already' if was_there else 'packed'} in {counted(len(index.shards), 'object')}, {index.size:,} "
        f"bytes, digest {index.digest[:12]}"
    )
    print(f"use: dataset: {{name: parquet, root: {store.uri}, split: {index.split}}}")


def train(config: ConfigArgument, set_: SetOption = None, quiet: QuietOption = False) -> None:
    """Train the config's classifiers or denoisers (training.method) and write checkpoints; resumes when interrupted."""
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.cli.progress import train_with_progress

    with interruptible("what was trained is kept; run the same command to go on"):
        for path in train_with_progress(load(config, set_, None), stderr(), quiet):
            print(path)


def schema() -> None:
    """Print the JSON schema of the config file."""
    from drs_ray.config import json_schema

    print(json_schema())
