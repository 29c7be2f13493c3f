"""Commands that plan, run and watch a certification."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from drs_ray.cli.options import (
    AddressOption,
    ConfigArgument,
    EndpointOption,
    QuietOption,
    RunArgument,
    SetOption,
    load,
    open_run,
    place,
    print_table,
    stderr,
    stdout,
)


def demo(
    directory: Annotated[Path, typer.Option(help="Where classifiers, runs and report go.", callback=place)] = Path(
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
        columns, report_file = run_demo(directory, images, samples, address or "local", stderr(), quiet)
    print_table(columns.results)
    print(f"report: {report_file}")


def plan(
    config: ConfigArgument,
    set_: SetOption = None,
    address: AddressOption = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Of a GPU hour (of a CPU hour where workers have no GPU), for the cost.")
    ] = None,
) -> None:
    """Estimate a run's units, samples and bytes, and its time and cost from a short probe. Nothing is written."""
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.cli.key_values import key_value_table, plan_values
    from drs_ray.cli.run_display import ConsoleObserver
    from drs_ray.engine.forecast import plan_run

    loaded = load(config, set_, address)
    with interruptible("nothing was written"), ConsoleObserver(stderr(), "plan", quiet=True) as observer:
        planned = plan_run(loaded, observer)
    stdout().print(key_value_table(plan_values(planned, price)))


def certify(
    config: ConfigArgument,
    set_: SetOption = None,
    address: AddressOption = None,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Append a JSON object per event; - writes them to stderr, not progress.",
            callback=place,
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

    loaded = load(config, set_, address)
    how_to_go_on = f"finished units are stored in {loaded.output.uri}; run the same command to resume"
    with ExitStack() as stack:
        stack.enter_context(interruptible(how_to_go_on))
        observer = Observer()
        if log != STDERR:
            observer = stack.enter_context(ConsoleObserver(stderr(), "certify", quiet))
        if log is not None:
            observer = Observers(observer, stack.enter_context(EventLog(log)))
        result = certify_run(loaded, observer)
    print_table([result])
    print(f"certificates: {result.uri}/certificates.parquet")


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
            metavar="DIR", help="What the job gets, without what .gitignore and .rayignore name.", callback=place
        ),
    ] = Path(),
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Submit, and do not follow.")] = False,
) -> None:
    """Submit `drs-ray certify` as a job of a Ray cluster, and follow it. An interrupt does not stop the job."""
    from drs_ray.cli.interrupts import interruptible
    from drs_ray.engine.ray.submit import submit_run

    submission = submit_run(config, set_ or [], working_dir, address)
    print(f"submitted: {submission.job}", *submission.how_to_go_on, sep="\n", flush=True)
    if not no_wait:
        with interruptible(f"the job {submission.job} goes on; {submission.how_to_go_on[1]}"):
            submission.follow(lambda text: print(text, end="", flush=True))


def status(run: RunArgument, endpoint_url: EndpointOption = None) -> None:
    """Show the state of a run, read from its store alone."""
    from drs_ray.cli.key_values import key_value_table, status_values
    from drs_ray.engine.status import run_status

    stdout().print(key_value_table(status_values(run_status(open_run(run, endpoint_url)))))
