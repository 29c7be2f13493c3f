"""A certification run from config to certificates: describe, join or start, plan, carry out, verify, reduce."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from importlib import metadata

from drs_ray.certificates.attainable import best_radius, least_samples
from drs_ray.certificates.fixed_radius import largest_fixed_radius
from drs_ray.certificates.stages import doubling_schedule
from drs_ray.config import DEFAULT_BATCH, EngineConfig, RunConfig
from drs_ray.engine.first_start import settled
from drs_ray.engine.frontier import Frontier
from drs_ray.engine.observer import Observer, Observers
from drs_ray.engine.plan import Unit, missing_units, plan_units
from drs_ray.engine.probe import Measurements, measure_inline
from drs_ray.engine.sizing import sized
from drs_ray.engine.tally import Tally
from drs_ray.errors import ClassifierError, ConfigError, EngineError, UnitsSetAsideError, counted
from drs_ray.results.evidence import rule_of
from drs_ray.results.parts import list_parts
from drs_ray.results.reduce import RunResult, reduce_run
from drs_ray.results.rounding import exact_text, format_down
from drs_ray.results.run_record import DatasetRecord, RunRecord, create_or_join, identity, run_id, stored_record
from drs_ray.results.sessions import noted_session
from drs_ray.results.store import Store, open_store

_SOFTWARE = ("drs-ray", "torch", "torchvision", "numpy", "scipy", "ray", "pyarrow", "boto3")


def certify_run(config: RunConfig, observer: Observer | None = None, session: Session | None = None) -> RunResult:
    """Certify the images of a config; resumes by itself where a part of the same run is stored already.

    Args:
        config: the run.
        observer: told of progress and events.
        session: an open session to use, for several runs on one Ray; None: one of its own.

    Raises:
        ConfigError, DataError, ClassifierError, StoreError: before anything is computed; nothing is written then.
        UnitsSetAsideError: some units cannot be computed; all others are stored.
        EngineError: the engine could not go on; what is stored is kept and a later call resumes.
    """
    observer = observer or Observer()
    store, record = complete_run(config, observer, session)
    observer.step("reducing")
    return reduce_run(store, record, config.certificate)


def complete_run(config: RunConfig, observer: Observer, session: Session | None = None) -> tuple[Store, RunRecord]:
    """`certify_run` up to its counts: all of them are stored then. Returns where, and the record in force."""
    from drs_ray.models.torch_state import plain_torch

    store = open_store(config.output.uri, config.output.endpoint_url)
    store.check_writable()
    with (
        plain_torch(),
        nullcontext(session) if session is not None else open_session(config.engine, observer) as session,
    ):
        stored = stored_record(store)
        described = describe_on(session, config, observer, stored)
        if stored is None:
            described, _ = settled(described, session, observer)
        else:
            described = sized(described, 1, None)  # the stored sizes will rule
        record, joined = create_or_join(store, described)
        observer.began(record)
        frontier = Frontier(record, store)
        todo = frontier.missing()
        if foreign := frontier.parts.foreign:
            observer.event(
                "ignored among the counts: "
                f"{counted(len(foreign), 'object that cannot be a part', 'objects that cannot be parts')}"
                f", first {foreign[0]}; `drs-ray repair` moves such objects aside"
            )
        if joined:
            for name, version in described.software.items():
                if version != record.software.get(name):
                    observer.event(
                        f"warning: the run began with {name} {record.software.get(name)}, this is {version}; "
                        "the last bit of a logit, and so a vote on a decision boundary, may differ",
                        "warning",
                    )
            observer.event(
                f"resuming run {record.run_id}: {counted(len(frontier.stored), 'unit is', 'units are')} "
                f"stored, {counted(len(todo), 'is', 'are')} to do",
                "resumed",
                stored=len(frontier.stored),
                todo=len(todo),
            )
        observer.planned(todo, len(frontier.stored))
        set_aside = _carry_out(todo, record, frontier, store, session, observer) if todo else {}
    _verify(set_aside, record, store)
    return store, record


def _carry_out(
    todo: list[Unit], record: RunRecord, frontier: Frontier, store: Store, session: Session, observer: Observer
) -> dict[Unit, str]:
    tally = Tally()
    watching: list[Observer] = [tally]
    if record.config.engine.address != "inline":
        from drs_ray.engine.metrics import MetricsObserver

        watching.append(MetricsObserver(record.run_id, len(todo)))
    with noted_session(store, tally.facts):
        return session.run(todo, record, frontier, store, Observers(observer, *watching))


def describe_on(session: Session, config: RunConfig, observer: Observer, stored: RunRecord | None = None) -> RunRecord:
    """The record of a run that will be carried out there, with all decided that needs no measuring.

    Args:
        session: where.
        config: the run.
        observer: told of warnings.
        stored: the run that has begun already, whose decisions are kept.

    Raises:
        As `describe_run`, and CountsError: the stored run is of an earlier version.
    """
    resolved = resolve(config, session, stored, observer)
    session.check(resolved.engine)
    engine = resolved.engine
    if config.engine.precision == "bfloat16" and not session.has_bfloat16(engine.device, observer):
        observer.event(
            f"warning: engine.precision: the {engine.device} here has no units for bfloat16, which is slower than "
            "float32 then; remove the key, or set float32",
            "warning",
        )
    return describe_run(resolved, observer, may_fall_back=stored is None and config.engine.precision == "auto")


def describe_run(config: RunConfig, observer: Observer, may_fall_back: bool = False) -> RunRecord:
    """Load and check everything that the config names, and make the run's record. Nothing is written.

    Args:
        config: the run, resolved.
        observer: told of warnings.
        may_fall_back: take float32 where a classifier cannot do bfloat16, and say so, instead of raising.

    Raises:
        ConfigError, DataError, ClassifierError: one clear line each.
    """
    observer.step("loading data set and classifiers")
    import torch

    from drs_ray.data.datasets import open_dataset, select_image_ids
    from drs_ray.engine.worker import classifier_of
    from drs_ray.models.inference import inference_module
    from drs_ray.smoothing.partition import partition_of

    dataset = open_dataset(config.dataset)
    images = config.dataset.images
    image_ids = select_image_ids(len(dataset), images.start, images.stop, images.skip, images.ids)
    for warning in (*config.doubts, *out_of_reach(config, dataset.num_classes), *dataset.warnings):
        observer.event(f"warning: {warning}", "warning")
    dataset.check(image_ids)
    shape = dataset.image_shape
    partition = partition_of(config.partition, shape)
    of_data = (shape, dataset.num_classes, dataset.name, dataset.classes)
    digests, probes, modules = [], [], []
    for sub_image in range(len(partition)):
        classifier = classifier_of(config, partition, sub_image, *of_data)
        if not config.classifiers[sub_image].is_complete:
            again = classifier_of(config, partition, sub_image, *of_data)
            if again.digest != classifier.digest:
                raise ClassifierError(
                    f"sub-image {sub_image}: {config.classifiers[sub_image].architecture} returns other weights each "
                    "time; a factory without a checkpoint must load or seed its weights itself"
                )
        digests.append(classifier.digest)
        probes.append(classifier.probe)
        modules.append(classifier.module)
        for warning in classifier.warnings:
            observer.event(f"warning: {warning}", "warning")
    try:
        if config.engine.precision == "bfloat16":
            for sub_image, module in enumerate(modules):
                layout = partition.layout_shape(sub_image, shape[0])
                inference_module(module, "bfloat16", torch.device("cpu"), layout, dataset.num_classes, sub_image)
    except ClassifierError as error:
        if not may_fall_back:
            raise ClassifierError(f"{error}; engine.precision: float32 may help") from error
        observer.event(f"warning: the run is done in float32, because in bfloat16 {error}", "warning")
        config = config.updated("engine", precision="float32")
    described = DatasetRecord(
        name=dataset.name,
        digest=dataset.digest,
        num_classes=dataset.num_classes,
        classes=dataset.classes,
        image_shape=shape,
        size=len(dataset),
    )
    return RunRecord(
        run_id=run_id(identity(config, described, image_ids, tuple(digests))),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config,
        dataset=described,
        image_ids=image_ids,
        classifier_digests=tuple(digests),
        classifier_probes=tuple(probes),
        stopping=config.certificate,
        software={"python": platform.python_version()} | {name: metadata.version(name) for name in _SOFTWARE},
        hardware=hardware_of(config.engine.device),
    )


def resolve(
    config: RunConfig, session: Session, stored: RunRecord | None = None, observer: Observer | None = None
) -> RunConfig:
    """The config with device, batch and precision filled in: all of them belong to the run's identity.

    What a stored run has decided for `auto` stays so; whether a new run is compiled, measuring decides (`settled`).
    """
    engine, precision, compiled = config.engine, config.engine.precision, config.engine.compile
    device = engine.device
    if device == "auto":
        device = "cuda" if session.has_gpus() else "cpu"
    batch = engine.batch or min(DEFAULT_BATCH[device], config.noise.block)
    _check_stages(config, device)
    _check_radius(config)
    if stored is not None:
        decided = stored.precision
        precision = decided if precision == "auto" else precision
        compiled = stored.config.engine.compile if compiled == "auto" else compiled
    elif precision == "auto":
        precision = "bfloat16" if session.has_bfloat16(device, observer or Observer()) else "float32"
    return config.updated("engine", device=device, batch=batch, precision=precision, compile=compiled)


def _check_stages(config: RunConfig, device: str) -> None:
    """On CUDA a block is drawn whole, and otherwise on another GPU: stages must not share a block of noise."""
    budget, block = config.budget, config.noise.block
    ends = doubling_schedule(budget.planned or budget.estimation, budget.stages).samples[:-1]
    if device == "cuda" and any(end % block for end in ends):
        raise ConfigError(
            f"budget: on cuda, stages must end at multiples of noise.block ({block}), got {', '.join(map(str, ends))}; "
            f"use an estimation of {block} x a power of 2, fewer stages, or a smaller block"
        )


def _check_radius(config: RunConfig) -> None:
    """A fixed radius that not even unanimous votes can certify would cost samples and certify nothing."""
    certificate, budget = config.certificate, config.budget
    if certificate.radius is None:
        return
    samples = budget.planned or budget.estimation
    most = largest_fixed_radius(
        samples, config.sigmas, certificate.alpha, vote=certificate.vote, weights=certificate.weights
    )
    if certificate.radius > most:
        raise ConfigError(
            f"certificate.radius: {exact_text(certificate.radius)} is out of reach: {counted(samples, 'sample')} of "
            f"each sub-image certify {format_down(most, 3)} at most; use a smaller radius, a larger budget.estimation "
            "or larger sigmas"
        )


def out_of_reach(config: RunConfig, num_classes: int) -> Iterator[str]:
    """In a line: that no image can get a certificate, or none at a radius > 0 of the grid, whatever the votes."""
    certificate, budget = config.certificate, config.budget
    rule, schedule = rule_of(config, certificate), doubling_schedule(budget.planned or budget.estimation, budget.stages)
    stages = [stage for stage in zip(schedule.samples, schedule.shares, strict=True) if stage[0] <= budget.estimation]

    def best(samples: int, share: float) -> float:
        return best_radius(rule, config.sigmas, samples, certificate.alpha, num_classes, share)

    most, (samples, share) = max(best(*stage) for stage in stages), stages[-1]
    wanted = next((radius for radius in certificate.grid if radius > 0), 0.0)
    if most == 0:
        least = least_samples(rule, config.sigmas, certificate.alpha, num_classes, share)
        yield (
            f"budget.estimation: with {samples:,} samples of each sub-image every image abstains, whatever the votes, "
            f"at certificate.alpha {exact_text(certificate.alpha)}; use {least:,} at least"
        )
    elif most < wanted:
        yield (
            f"certificate.radii: the smallest above 0, {exact_text(wanted)}, is out of reach: {samples:,} samples of "
            f"each sub-image certify {format_down(most, 3)} at most; use smaller radii, a larger budget.estimation or "
            "larger sigmas"
        )


class Session:
    """Where units are carried out. Ray is not touched before it is needed; a Ray that runs already is used."""

    def __init__(self, engine: EngineConfig, observer: Observer) -> None:
        """observer: told which Ray `auto` was."""
        self._engine = engine
        self._observer = observer
        self._connected = False
        self._ours = False

    def has_gpus(self) -> bool:
        """Whether workers will find a GPU."""
        if self._engine.address in ("inline", "local"):
            import torch

            return bool(torch.cuda.is_available())
        self._connect()
        from drs_ray.engine import driver

        return driver.cluster_gpus(self._engine) > 0

    def has_bfloat16(self, device: str, observer: Observer) -> bool:
        """Whether the workers' devices have units for bfloat16; of a cluster, one worker's is looked at.

        observer: told where no node of a cluster can hold a worker now.
        """
        if self._engine.address in ("inline", "local"):
            from drs_ray.models.precision import has_bfloat16

            return has_bfloat16(device)
        self._connect()
        from drs_ray.engine import driver

        return driver.workers_have_bfloat16(self._engine, device, observer)

    def check(self, engine: EngineConfig) -> None:
        """Refuse what this machine can never serve; a cluster may still grow.

        Raises:
            ConfigError: a GPU is asked for and there is none, or more CPUs than there are.
        """
        if engine.address not in ("inline", "local"):
            return
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if engine.device == "cuda" and not gpus:
            raise ConfigError(
                "engine.device: cuda needs a GPU and this machine has none; use device cpu, or a cluster (address auto)"
            )
        for key, have, want in (
            ("gpus_per_worker", gpus, engine.gpus_per_worker or 0),
            ("cpus_per_worker", os.cpu_count() or 1, engine.cpus_per_worker),
        ):
            if want > have:
                raise ConfigError(
                    f"engine.{key}: must be <= {have}, what this machine has, got {exact_text(want)}; "
                    "lower it or use a cluster (engine.address: auto)"
                )

    def room(self, engine: EngineConfig) -> int:
        """How many workers would find room now."""
        if self._engine.address == "inline":
            return 1
        self._connect()
        from drs_ray.engine import driver

        return max(1, driver.room(engine))

    def measure(self, units: list[Unit], record: RunRecord, observer: Observer) -> Measurements:
        """See `drs_ray.engine.probe.Prober`."""
        if self._engine.address == "inline":
            return measure_inline(units, record)
        self._connect()
        from drs_ray.engine import driver

        return driver.measure_on_ray(units, record, observer)

    def run(
        self, units: list[Unit], record: RunRecord, frontier: Frontier, store: Store, observer: Observer
    ) -> dict[Unit, str]:
        """Do the units and those that they call for; returns those set aside, with the reason."""
        if self._engine.address == "inline":
            from drs_ray.engine.inline import run_inline

            return run_inline(units, record, frontier, store, observer)
        observer.step("starting Ray workers")
        self._connect()
        from drs_ray.engine import driver

        return driver.run_on_ray(units, record, frontier, store.uri, observer)

    def close(self) -> None:
        """Leave the Ray that this session started or attached to."""
        if self._ours:
            import ray

            ray.shutdown()

    def _connect(self) -> None:
        if not self._connected:
            from drs_ray.engine.connection import connect

            self._ours = connect(self._engine, self._observer.event)
            self._connected = True


@contextmanager
def open_session(engine: EngineConfig, observer: Observer | None = None) -> Iterator[Session]:
    """A session that is closed on the way out. observer: told which Ray `auto` was."""
    session = Session(engine, observer or Observer())
    try:
        yield session
    finally:
        session.close()


def _verify(set_aside: dict[Unit, str], record: RunRecord, store: Store) -> None:
    """Nothing was set aside and nothing is missing; whether all further stages are there, the reducer checks."""
    if set_aside:
        first, reason = next(iter(set_aside.items()))
        raise UnitsSetAsideError(
            f"{counted(len(set_aside), 'unit was', 'units were')} set aside, first {first.key}: {reason}; all others "
            f"are stored in {store.uri}; mend the cause, then run the same command to resume"
        )
    missing = missing_units(plan_units(record), list_parts(store, record))
    if missing:
        raise EngineError(
            f"{store.uri}: {counted(len(missing), 'part is', 'parts are')} not there although written, first "
            f"{missing[0].key}; was the place changed meanwhile? Run the same command to resume"
        )


def hardware_of(device: str) -> str:
    """What kind of device this machine would count votes on, in words."""
    if device == "cuda":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
        return "cuda (of the workers)"
    from drs_ray.models.precision import has_bfloat16

    units = " with bfloat16 units" if has_bfloat16("cpu") else ""
    return f"{platform.machine()} CPU{units}, {counted(os.cpu_count() or 1, 'core')}"
