"""Commands that check a run: its votes, its radii, its certificates."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from drs_ray.cli.options import (
    DeviceOption,
    EndpointOption,
    PlacesOption,
    QuietOption,
    RunArgument,
    place,
    stderr,
    stdout,
)


def verify(
    run: RunArgument,
    units: Annotated[int, typer.Option(min=1, help="How many stored units to check, drawn at random.")] = 10,
    images: Annotated[int, typer.Option(min=1, help="How many images of each unit, drawn at random.")] = 4,
    image: Annotated[
        int | None, typer.Option(min=0, metavar="ID", help="This image in all of its units, in place of a random draw.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Repeat the draw of an earlier check.")] = None,
    device: DeviceOption = None,
    level: Annotated[float, typer.Option(help="Chance that a faultless run fails, if not compared exactly.")] = 1e-3,
    set_: PlacesOption = None,
    endpoint_url: EndpointOption = None,
    quiet: QuietOption = False,
) -> None:
    """Recompute random units of a run here, and compare their votes with the stored ones. Nothing is written."""
    import drs_ray
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.cli.key_values import key_value_table, verify_values
    from drs_ray.cli.run_display import ConsoleObserver

    with interruptible("nothing was written"), ConsoleObserver(stderr(), "verify", quiet) as observer:
        found = drs_ray.verify(
            run,
            units,
            images=images,
            image=image,
            seed=seed,
            device=device,
            level=level,
            overrides=set_ or (),
            observer=observer,
            endpoint_url=endpoint_url,
        )
    stdout().print(key_value_table(verify_values(found, images, level)))
    found.check()
    print("the stored votes agree")


def audit(run: RunArgument, endpoint_url: EndpointOption = None) -> None:
    """Derive every radius of a run again from its counts, by other code and in ball arithmetic. Nothing is written."""
    import drs_ray
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.cli.key_values import audit_values, key_value_table

    with interruptible("nothing was written"):
        found = drs_ray.audit(run, endpoint_url=endpoint_url)
    stdout().print(key_value_table(audit_values(found)))
    for image_id, why in found.far_below.items():
        print(f"warning: image {image_id}: {why}: smaller than need be, and sound", file=sys.stderr)
    found.check()
    print("the counts prove every radius")


def attack(
    run: RunArgument,
    images: Annotated[int, typer.Option(min=1, help="How many images of the run, drawn at random.")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Descent steps for an image's direction.")] = 60,
    samples: Annotated[int, typer.Option(min=2, help="Noise samples per sub-image of a step.")] = 32,
    confirmation: Annotated[int, typer.Option(min=1, help="Fresh samples per sub-image that confirm.")] = 10_000,
    level: Annotated[float, typer.Option(help="Chance that any confirmation is wrong, over all images.")] = 1e-3,
    seed: Annotated[int | None, typer.Option(min=0, help="Repeat an earlier attack.")] = None,
    device: DeviceOption = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Parquet file or s3:// URI for the table and the images found.", callback=place
        ),
    ] = None,
    set_: PlacesOption = None,
    endpoint_url: EndpointOption = None,
    quiet: QuietOption = False,
) -> None:
    """Search for perturbations that change a certified prediction: none may be shorter than the certified radius."""
    import drs_ray
    from drs_ray.checks.attack.report import check_output
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.cli.key_values import attack_values, key_value_table, render_attack
    from drs_ray.cli.progress import images_progress

    with interruptible("nothing was written"), images_progress(stderr(), "attack", quiet) as on_progress:
        if output is not None:
            check_output(output, endpoint_url)
        found = drs_ray.attack(
            run,
            images,
            steps=steps,
            samples=samples,
            confirmation=confirmation,
            level=level,
            seed=seed,
            device=device,
            overrides=set_ or (),
            on_progress=on_progress,
            endpoint_url=endpoint_url,
        )
    stdout().print(render_attack(found))
    stdout().print(key_value_table(attack_values(found)))
    try:
        if output is not None:
            found.write(output, endpoint_url)
            print(f"attack: {output}")
    finally:
        found.check()  # an unsound certificate is reported even if the file cannot be written
    untested = "" if found.broken.any() else ", nor tested: no perturbation was found and confirmed"
    print(f"no certificate is contradicted{untested}")
