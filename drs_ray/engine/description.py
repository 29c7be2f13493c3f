"""Describes a run before anything is computed: resolves its config, loads and checks its data and classifiers."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib import metadata

from drs_ray.certificates.attainable import best_radius, least_samples
from drs_ray.certificates.fixed_radius import largest_fixed_radius
from drs_ray.certificates.rounding import exact_text, format_down
from drs_ray.certificates.stages import doubling_schedule
from drs_ray.config import DEFAULT_BATCH, RunConfig
from drs_ray.counts.run_record import DatasetRecord, RunRecord, identity, run_id
from drs_ray.engine.executor import Executor
from drs_ray.engine.observer import Observer
from drs_ray.errors import ClassifierError, ConfigError, counted
from drs_ray.results.selected_votes import rule_of

SOFTWARE = ("drs-ray", "torch", "torchvision", "numpy", "scipy", "ray", "pyarrow", "boto3")
"""Libraries whose versions run.json always has, beside those whose layers the classifiers consist of."""


def describe_on(
    executor: Executor, config: RunConfig, observer: Observer, stored: RunRecord | None = None
) -> RunRecord:
    """The record of a run for this executor, with everything decided that needs no measurement.

    Args:
        executor: where the units will be computed.
        config: the run.
        observer: receives warnings.
        stored: the record of a run that has already begun; its decisions are kept.

    Raises:
        As `describe_run`, and CountsError: the stored run was begun by an earlier version.
    """
    resolved = resolve(config, executor, stored, observer)
    executor.check(resolved.engine)
    engine = resolved.engine
    if config.engine.precision == "bfloat16" and not executor.has_bfloat16(engine.device, observer):
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
        observer: receives warnings.
        may_fall_back: if a classifier cannot run in bfloat16, warn and use float32 instead of raising.

    Raises:
        ConfigError, DataError, ClassifierError: with a one-line message.
    """
    observer.step("loading data set and classifiers")
    import torch

    from drs_ray.data.datasets import open_dataset, select_image_ids
    from drs_ray.engine.unit_runner import classifier_of
    from drs_ray.models.inference import inference_module
    from drs_ray.smoothing.partition import partition_of

    dataset = open_dataset(config.dataset)
    images = config.dataset.images
    image_ids = select_image_ids(len(dataset), images.start, images.stop, images.skip, images.ids)
    for warning in (*config.unlikely_settings, *out_of_reach(config, dataset.num_classes), *dataset.warnings):
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
        software=software_of(type(layer).__module__ for module in modules for layer in module.modules()),
        hardware=hardware_of(config.engine.device),
    )


def software_of(modules: Iterable[str]) -> dict[str, str]:
    """Versions of Python, of `SOFTWARE`, and of the installed libraries that hold these modules, by name."""
    libraries = {name.partition(".")[0].replace("_", "-") for name in modules}
    names = (*SOFTWARE, *sorted(libraries - set(SOFTWARE)))  # of the others, some are modules of the user's own
    versions = {name: version for name in names if (version := installed_version(name)) is not None}
    return {"python": platform.python_version()} | versions


def installed_version(name: str) -> str | None:
    """The version of an installed library; None if there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def resolve(
    config: RunConfig, executor: Executor, stored: RunRecord | None = None, observer: Observer | None = None
) -> RunConfig:
    """The config with device, batch and precision filled in: all of them belong to the run's identity.

    A stored run keeps its values for `auto`. For a new run, a measurement decides whether to compile
    (`decide_first_start`).
    """
    engine, precision, compiled = config.engine, config.engine.precision, config.engine.compile
    device = engine.device
    if device == "auto":
        device = "cuda" if executor.has_gpus() else "cpu"
    batch = engine.batch or min(DEFAULT_BATCH[device], config.noise.block)
    _check_stages(config, device)
    _check_radius(config)
    if stored is not None:
        decided = stored.precision
        precision = decided if precision == "auto" else precision
        compiled = stored.config.engine.compile if compiled == "auto" else compiled
    elif precision == "auto":
        precision = "bfloat16" if executor.has_bfloat16(device, observer or Observer()) else "float32"
    return config.updated("engine", device=device, batch=batch, precision=precision, compile=compiled)


def _check_stages(config: RunConfig, device: str) -> None:
    """Stages must not share a noise block on CUDA: a block is drawn whole there, and differs between GPU models."""
    budget, block = config.budget, config.noise.block
    ends = doubling_schedule(budget.planned or budget.estimation, budget.stages).samples[:-1]
    if device == "cuda" and any(end % block for end in ends):
        raise ConfigError(
            f"budget: on cuda, stages must end at multiples of noise.block ({block}), got {', '.join(map(str, ends))}; "
            f"use an estimation of {block} x a power of 2, fewer stages, or a smaller block"
        )


def _check_radius(config: RunConfig) -> None:
    """Refuse a fixed radius that not even unanimous votes can certify."""
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
    """A warning if no votes can give an image a certificate, or a certificate at a radius > 0 of the grid."""
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


def hardware_of(device: str) -> str:
    """Description of the device on which this machine would count votes."""
    if device == "cuda":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
        return "cuda (of the workers)"
    from drs_ray.models.precision import has_bfloat16

    units = " with bfloat16 units" if has_bfloat16("cpu") else ""
    return f"{platform.machine()} CPU{units}, {counted(os.cpu_count() or 1, 'core')}"
