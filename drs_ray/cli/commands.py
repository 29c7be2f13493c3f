"""The `drs-ray` command: parse, call one function, print. torch and Ray are imported by commands that need them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drs_ray.errors import ConfigError, DrsError, InterruptedRunError, counted

if TYPE_CHECKING:
    from rich.console import Console

    from drs_ray.config import RunConfig
    from drs_ray.published.imported_run import Shown
    from drs_ray.storage import Store

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _place(param: typer.CallbackParam, value: Any) -> Any:
    """A path, URI or place=path of the command line (or several), with variables and `~` expanded."""
    from drs_ray.config import expanded

    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [_place(param, one) for one in value]
    try:
        return type(value)(os.path.expanduser(expanded(str(value))))  # noqa: PTH111 - it may be a URI
    except ValueError as error:
        name = param.opts[-1] if param.param_type_name == "option" else param.metavar
        raise ConfigError(f"{name}: {error}, got {value}") from error


ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file (see `drs-ray schema`).", callback=_place)
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Directory or s3:// URI of a run.", callback=_place)]
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
        callback=_place,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, results only.")]
EndpointOption = Annotated[
    str | None, typer.Option(help="Endpoint of an S3-compatible server [default: AWS_ENDPOINT_URL or AWS].")
]


def main(*before: str) -> None:
    """Run the command line; errors that drs-ray raises on purpose become one line and an exit code.

    Args:
        before: arguments to put before those of the process: jobs/ has a file for each command.
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


@app.command(epilog="Example: `drs-ray demo --directory runs/demo`")
def demo(
    directory: Annotated[Path, typer.Option(help="Where classifiers, runs and report go.", callback=_place)] = Path(
        "runs/demo"
    ),
    images: Annotated[int, typer.Option(min=1, max=1000, help="Test images to certify.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="Estimation samples per image and sub-image.")] = 3000,
    address: AddressOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train, certify RS and DRS side by side on real digits, print the table, write the report."""
    from drs_ray.cli.demo import run_demo
    from drs_ray.cli.interrupts import interruptible

    with interruptible("run the same command to resume"):
        columns, report_file = run_demo(directory, images, samples, address or "local", _stderr(), quiet)
    _print_table(columns.results)
    print(f"report: {report_file}")


@app.command(epilog="Example: `drs-ray plan config.yaml --set budget.estimation=100000 --price 2.5`")
def plan(
    config: ConfigArgument,
    set_: SetOption = None,
    address: AddressOption = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Of a GPU hour (of a CPU hour where workers have no GPU), for the cost.")
    ] = None,
) -> None:
    """Size a run: units, samples, bytes, and the expected time and cost from a short probe. Nothing is written."""
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.cli.key_values import plan_facts, render_facts
    from drs_ray.cli.run_display import ConsoleObserver
    from drs_ray.engine.forecast import plan_run

    loaded = _load(config, set_, address)
    with interruptible("nothing was written"), ConsoleObserver(_stderr(), "plan", quiet=True) as observer:
        planned = plan_run(loaded, observer)
    _stdout().print(render_facts(plan_facts(planned, price)))


@app.command(epilog="Example: `drs-ray certify config.yaml --set output=s3://bucket/run --address auto`")
def certify(
    config: ConfigArgument,
    set_: SetOption = None,
    address: AddressOption = None,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Append a JSON object per event; - writes them to stderr, not progress.",
            callback=_place,
        ),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Run or resume a certification, and print its table."""
    from drs_ray.cli.event_log import STDERR, EventLog
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.cli.run_display import ConsoleObserver
    from drs_ray.engine.observer import Observer, Observers
    from drs_ray.engine.run import certify_run

    loaded = _load(config, set_, address)
    how_to_go_on = f"finished units are stored in {loaded.output.uri}; run the same command to resume"
    with ExitStack() as stack:
        stack.enter_context(interruptible(how_to_go_on))
        observer = Observer()
        if log != STDERR:
            observer = stack.enter_context(ConsoleObserver(_stderr(), "certify", quiet))
        if log is not None:
            observer = Observers(observer, stack.enter_context(EventLog(log)))
        result = certify_run(loaded, observer)
    _print_table([result])
    print(f"certificates: {result.uri}/certificates.parquet")


@app.command(epilog="Example: `drs-ray submit config.yaml --address http://127.0.0.1:8265`")
def submit(
    config: ConfigArgument,
    address: Annotated[
        str,
        typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, http://host:port."),
    ] = "http://127.0.0.1:8265",
    set_: SetOption = None,
    working_dir: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="What the job gets, without what .gitignore and .rayignore name.", callback=_place
        ),
    ] = Path(),
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Submit, and do not follow.")] = False,
) -> None:
    """Submit `drs-ray certify` as a job of a Ray cluster, and follow it. Interrupting this leaves the job running."""
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.engine.ray.submit import submit_run

    submission = submit_run(config, set_ or [], working_dir, address)
    print(f"submitted: {submission.job}", *submission.how_to_go_on, sep="\n", flush=True)
    if not no_wait:
        with interruptible(f"the job {submission.job} goes on; {submission.how_to_go_on[1]}"):
            submission.follow(lambda text: print(text, end="", flush=True))


@app.command(epilog="Example: `drs-ray status s3://bucket/run`")
def status(run: RunArgument, endpoint_url: EndpointOption = None) -> None:
    """Show where a run stands, from its store alone."""
    from drs_ray.cli.key_values import render_facts, status_facts
    from drs_ray.engine.status import run_status

    _stdout().print(render_facts(status_facts(run_status(_open(run, endpoint_url)))))


@app.command(epilog="Example: `drs-ray reduce runs/demo/drs --alpha 0.01`")
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
    chosen = {key: value for key, value in changes.items() if value is not None}
    _print_table([drs_ray.reduce(run, endpoint_url=endpoint_url, **chosen)])


@app.command(epilog="Example: `drs-ray report runs/demo/rs runs/demo/drs --output runs/demo`")
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="One or more reduced runs.", callback=_place)],
    output: Annotated[
        str | None, typer.Option(help="Where the report goes [default: the first run].", callback=_place)
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
    from drs_ray.published.imported_run import read_shown
    from drs_ray.report.page import write_report
    from drs_ray.report.readouts import read_columns, read_common_columns, read_partial_columns
    from drs_ray.report.summary import check_same_test_set
    from drs_ray.report.terminal_table import render_convergence
    from drs_ray.report.thumbnails import thumbnails

    stores = [_open(run, endpoint_url) for run in runs]
    if partial:
        if common:
            raise ConfigError("--common: is for several finished runs; leave it out, or --partial")
        if len(stores) > 1:
            raise ConfigError(
                f"--partial: takes one RUN, got {len(stores)}: an unfinished run has come to other images than the "
                "others; report it on its own, or finish it"
            )
        columns = read_partial_columns(stores[0], compare_rules=compare_rules)
    elif common:
        shown = [(read_shown(store), store) for store in stores]
        columns = read_common_columns(shown, compare_rules=compare_rules)
    else:
        results = [read_shown(store) for store in stores]
        check_same_test_set(results)
        columns = read_columns(zip(results, stores, strict=True), compare_rules=compare_rules)
    target = _open(output or runs[0], endpoint_url)
    _print_table(columns.results)
    if columns.convergence:
        _stdout().print(render_convergence(columns))
    for key in write_report(columns, target, thumbnails):
        print(f"{target.uri}/{key}")


@app.command(epilog="Example: `drs-ray export runs/demo/drs --format tsv --output drs.tsv`")
def export(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="A reduced or imported run; several for tables.", callback=_place),
    ],
    format_: Annotated[
        str, typer.Option("--format", help="tsv or csv (every image), markdown or latex (certified accuracy at radii).")
    ],
    output: Annotated[
        str | None, typer.Option(help="File or s3:// object to write [default: stdout].", callback=_place)
    ] = None,
    radii: RadiiOption = None,
    endpoint_url: EndpointOption = None,
) -> None:
    """Write runs in the field's log format, as csv, or as a table for a paper."""
    from drs_ray.published.imported_run import read_shown
    from drs_ray.report.export import export
    from drs_ray.storage import open_place_of

    results = [read_shown(_open(run, endpoint_url)) for run in runs]
    text = export(results, format_, _numbers("radii", radii))
    if output is None:
        print(text, end="")
        return
    place, _, name = output.rpartition("/")
    if not name or place.endswith(":/"):
        raise ConfigError(f"--output: {output} names no file; give one, for example drs.tsv or s3://bucket/drs.tsv")
    store, key = open_place_of(output, endpoint_url)
    store.put(key, text.encode())
    print(output)


@app.command(
    "import",
    epilog="Example: `drs-ray import log.tsv runs/cohen --dataset cifar10 --sigma 0.5 --n 100000 --alpha 0.001`",
)
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Log in a format of certify.py or predict.py.", callback=_place)
    ],
    run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or s3:// URI to keep it in.", callback=_place)],
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
    """Keep a published log as a run to compare with. It stays marked: imported, not verified."""
    from drs_ray.published.imported_run import import_log, read_log

    result = import_log(
        _open(run, endpoint_url),
        read_log(file),
        file.name,
        dataset=dataset,
        split=split,
        sigmas=_numbers("sigma", sigma) or [],
        estimation=n,
        selection=n0,
        alpha=alpha,
        radius_rule=radius_rule,
        radius=radius,
        radii=_numbers("radii", radii),
    )
    _print_table([result])
    for warning in result.record.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"imported, not verified: {result.uri}/certificates.parquet")


@app.command(epilog="Example: `drs-ray certificate runs/demo/drs 0`")
def certificate(
    run: RunArgument,
    image_id: Annotated[int, typer.Argument(metavar="IMAGE_ID", help="An image of the run.")],
    endpoint_url: EndpointOption = None,
) -> None:
    """Everything about one certificate: votes, levels, bounds, and the inequality that gives the radius, in numbers."""
    from drs_ray.cli.certificate_text import certificate_facts
    from drs_ray.cli.key_values import render_facts
    from drs_ray.results.image_certificate import read_certificate

    facts = certificate_facts(read_certificate(_open(run, endpoint_url), image_id))
    unbroken = None if sys.stdout.isatty() else 1000  # a formula in a file is one line
    _stdout(unbroken).print(render_facts(facts))


@app.command(epilog="Example: `drs-ray verify s3://bucket/run --units 20`")
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
    from drs_ray.audit.verify import verify_run
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.cli.key_values import render_facts, verify_facts
    from drs_ray.cli.run_display import ConsoleObserver

    with interruptible("nothing was written"), ConsoleObserver(_stderr(), "verify", quiet) as observer:
        found = verify_run(
            _open(run, endpoint_url),
            units,
            images=images,
            image=image,
            seed=seed,
            device=device,
            level=level,
            overrides=set_ or (),
            observer=observer,
        )
    _stdout().print(render_facts(verify_facts(found, images, level)))
    found.check()
    print("the stored votes agree")


@app.command(epilog="Example: `drs-ray audit s3://bucket/run`")
def audit(run: RunArgument, endpoint_url: EndpointOption = None) -> None:
    """Derive every radius of a run again from its counts, by other code and in ball arithmetic. Nothing is written."""
    from drs_ray.audit.radii import audit_run
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.cli.key_values import audit_facts, render_facts

    with interruptible("nothing was written"):
        found = audit_run(_open(run, endpoint_url))
    _stdout().print(render_facts(audit_facts(found)))
    for image_id, why in found.far_below.items():
        print(f"warning: image {image_id}: {why}: smaller than need be, and sound", file=sys.stderr)
    found.check()
    print("the counts prove every radius")


@app.command(epilog="Example: `drs-ray attack s3://bucket/run --images 50 --output attack.parquet`")
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
            metavar="FILE", help="Parquet file or s3:// URI for the table and the images found.", callback=_place
        ),
    ] = None,
    set_: PlacesOption = None,
    endpoint_url: EndpointOption = None,
    quiet: QuietOption = False,
) -> None:
    """Search perturbations that change a run's certified predictions: none may be shorter than the certified radius."""
    from drs_ray.audit.attack.report import check_output
    from drs_ray.audit.attack.run import attack_run
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.cli.key_values import attack_facts, render_attack, render_facts
    from drs_ray.cli.progress import images_progress

    with interruptible("nothing was written"), images_progress(_stderr(), "attack", quiet) as told:
        if output is not None:
            check_output(output, endpoint_url)
        found = attack_run(
            _open(run, endpoint_url),
            images,
            steps=steps,
            samples=samples,
            confirmation=confirmation,
            level=level,
            seed=seed,
            device=device,
            overrides=set_ or (),
            told=told,
        )
    _stdout().print(render_attack(found))
    _stdout().print(render_facts(attack_facts(found)))
    try:
        if output is not None:
            found.write(output, endpoint_url)
            print(f"attack: {output}")
    finally:
        found.check()  # what it finds matters more than a file that cannot be written
    untested = "" if found.broken.any() else ", nor tested: no perturbation was found and confirmed"
    print(f"no certificate is contradicted{untested}")


@app.command(epilog="Example: `drs-ray compact s3://bucket/run`")
def compact(run: RunArgument, endpoint_url: EndpointOption = None) -> None:
    """Merge a run's small parts into few large objects. Safe at any time, also while the run goes on."""
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.counts.compaction import compact_run
    from drs_ray.counts.run_record import read_record

    store = _open(run, endpoint_url)
    with interruptible("no part is lost; run the same command to go on"):
        done = compact_run(store, read_record(store))
    merged, into = counted(done.units, "unit"), counted(len(done.objects), "object")
    print(f"{merged} merged into {into}, {counted(done.deleted, 'small part')} deleted")
    for key, reason in done.unsound.items():
        print(f"left alone: {key}: {reason}")
    done.check(run)


@app.command(epilog="Example: `drs-ray repair s3://bucket/run --dry-run`")
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

    def told(finding: Finding) -> None:
        print(finding.text)

    store = _open(run, endpoint_url)
    with interruptible("nothing is lost; run the same command to go on"):
        record = read_record(store)
        if unit:
            found = repair_units(store, record, unit, dry_run=dry_run, told=told)
        else:
            found = repair_run(store, record, dry_run=dry_run, told=told)
    if not found:
        print("none of these units is stored" if unit else "all counts can be trusted")
    elif dry_run:
        print(f"{len(found):,} would be moved aside; nothing was changed")
    else:
        print(
            f"{len(found):,} moved to {store.uri}/set-aside; run `drs-ray certify` with the run's config to "
            "compute what is missing and to reduce again"
        )


@app.command(epilog="Example: `drs-ray pack config.yaml s3://bucket/cifar10 --set dataset.split=train`")
def pack(
    config: ConfigArgument,
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Directory or s3:// URI; the split goes below it.", callback=_place),
    ],
    set_: SetOption = None,
    endpoint_url: EndpointOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write all images of the config's data set as Parquet, for the data set `parquet`. Needs no other section."""
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.cli.progress import pack_with_progress
    from drs_ray.config import load_dataset_config

    store = _open(out, endpoint_url)
    with interruptible("nothing can be read there yet; run the same command to start over"):
        index, was_there = pack_with_progress(load_dataset_config(config, set_ or ()), store, _stderr(), quiet)
    shape = " x ".join(str(size) for size in index.image_shape)
    print(
        f"{counted(index.images, 'image')} ({shape}, {counted(index.num_classes, 'class')}) "
        f"{'packed already' if was_there else 'packed'} in {counted(len(index.shards), 'object')}, {index.size:,} "
        f"bytes, digest {index.digest[:12]}"
    )
    print(f"use: dataset: {{name: parquet, root: {store.uri}, split: {index.split}}}")


@app.command(epilog="Example: `drs-ray train config.yaml --set training.epochs=30`")
def train(config: ConfigArgument, set_: SetOption = None, quiet: QuietOption = False) -> None:
    """Train the config's sub-image classifiers under noise, or go on where that was interrupted; write checkpoints."""
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.cli.progress import train_with_progress

    with interruptible("what was trained is kept; run the same command to go on"):
        for path in train_with_progress(_load(config, set_, None), _stderr(), quiet):
            print(path)


@app.command(epilog="Example: `drs-ray schema > drs-ray.schema.json`")
def schema() -> None:
    """Print the JSON schema of the config file."""
    from drs_ray.config import json_schema

    print(json_schema())


def _load(config: Path, overrides: list[str] | None, address: str | None) -> RunConfig:
    from drs_ray.config import load_config

    return load_config(config, [*(overrides or []), *([f"engine.address={address}"] if address else [])])


def _open(uri: str, endpoint_url: str | None) -> Store:
    from drs_ray.storage import open_store

    return open_store(uri, endpoint_url)


def _numbers(name: str, text: str | None) -> list[float] | None:
    """0,0.5,1 -> numbers."""

    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--{name}: must be numbers separated by commas, for example 0,0.5,1; got {text}") from error


def _stdout(width: int | None = None) -> Console:
    from rich.console import Console

    return Console(width=width)


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _print_table(results: Sequence[Shown]) -> None:
    from drs_ray.report.readouts import rule_gains
    from drs_ray.report.terminal_table import render_table

    _stdout().print(render_table(results))
    for gain in rule_gains(results):
        print(gain.text)
