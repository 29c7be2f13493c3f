"""`drs-ray train`: trains a config's classifiers or denoisers on their sub-images, and writes checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from pydantic import JsonValue
from torch import nn

from drs_ray.config import ClassifierConfig, DenoiserConfig, RunConfig, Section, TrainingConfig
from drs_ray.config.base import place_of
from drs_ray.data.datasets import Dataset
from drs_ray.errors import ClassifierError, ConfigError, counted, sub_images_text
from drs_ray.models.building import PROGRAM, TRANSFORMERS
from drs_ray.models.check import check_classifier
from drs_ray.models.checkpoints import CheckpointMetadata, load_checkpoint, parse_checkpoint, save_checkpoint
from drs_ray.models.denoisers import check_denoiser, denoiser_file, save_denoiser
from drs_ray.models.files import check_writable, delete_file, read_if_there
from drs_ray.models.openai_diffusion import FLAGS
from drs_ray.models.tensors import load_tensors, module_digest
from drs_ray.models.torch_state import plain_torch
from drs_ray.training.images import in_memory_if_small
from drs_ray.training.job import TrainingJob, training_split
from drs_ray.training.loop import ImagesDone, Place, Report
from drs_ray.training.state import TrainingState, load_state, save_state, weights_of

TrainingReport = Callable[[int, int, int, float, float | None], None]
"""Called after every epoch with: network, epoch (from 1), epochs, mean loss, accuracy under the method's noise.

The network is a position in `RunConfig.networks`.

The accuracy is None for the method `mse`, which has no classifier.
"""

ImagesReport = Callable[[int, int, int, int], None]
"""Called at the start of an epoch and about once a second with: network, epoch, images done, images of the epoch."""

_NOT_LEARNED = {"checkpoint_every", "loaders", "hold_out"}
"""Keys of the training section that are not settings of a state, because they do not change the weights.

hold_out changes the weights, but the digest of the training images depends on it and is among the settings.
"""
_NOT_SETTINGS = {"training", "classes"}
"""Metadata that are not settings: the keys of `training` are settings instead, and `classes` depends on the data."""


@plain_torch()
def train_run(
    config: RunConfig,
    *,
    sub_images: Sequence[int] | None = None,
    on_progress: TrainingReport | None = None,
    on_images: ImagesReport | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[str]:
    """Train classifiers or denoisers of a config on `dataset` with split `training.split`, and write their checkpoints.

    After an interruption, the same call continues from the state beside the checkpoint (`state_file`), and gives the
    same weights on the same machine. A checkpoint with equal settings is kept; any other is replaced.

    Args:
        config: the run. There are `training.workers` workers on the Ray of `engine.address`. One worker with address
            inline or local runs in this process.
        sub_images: sub-images whose networks are trained; None: all. The weights of a network do not depend on which
            others are trained.
        on_progress: called after every epoch.
        on_images: called during every epoch.
        on_note: called with a line about anything unusual: a training that continues, was done, or is slow.

    Returns:
        The checkpoints written or kept, one of each network: local paths or s3:// URIs, as in the config.

    Raises:
        ConfigError: a checkpoint is no .safetensors file or cannot be written, settings contradict each other or this
            machine, or a state belongs to other settings.
        DataError: the training split is missing.
        ClassifierError: an architecture cannot be built or started from `training.start_from`, the classifier behind
            a denoiser cannot be loaded, or training diverges.
        EngineError: workers cannot be started, or fail too often.
    """
    chosen = _chosen(config, sub_images)
    files = [_checkpoint_file(config, config.networks[network]) for network in chosen]
    in_process = config.training.workers == 1 and config.engine.address in ("inline", "local")
    _check_workers(config)
    place = Place(_device(config)) if in_process else None
    dataset = training_split(config)
    on_note = on_note or (lambda note: None)
    for warning in (*config.unlikely_settings, *dataset.warnings):
        on_note(f"warning: {warning}")
    if in_process:
        dataset = in_memory_if_small(dataset)
    jobs = [TrainingJob(config, config.networks[network], dataset.digest) for network in chosen]
    for job in jobs:
        job.layout_shape(dataset)
        if len(job.sub_images) > 1:
            on_note(f"{job.name} name the same checkpoint: one network is trained for them")
    for network, job, file in zip(chosen, jobs, files, strict=True):
        _train_one(
            job,
            dataset,
            file,
            place,
            on_progress and partial(on_progress, network),
            on_images and partial(on_images, network),
            on_note,
        )
    return files


def state_file(checkpoint: str) -> str:
    """Path of the state of an unfinished training, beside its checkpoint."""
    return checkpoint.removesuffix(".safetensors") + ".training.safetensors"


def _train_one(
    job: TrainingJob,
    dataset: Dataset,
    file: str,
    place: Place | None,
    on_progress: Callable[[int, int, float, float | None], None] | None,
    on_images: Callable[[int, int, int], None] | None,
    on_note: Callable[[str], None],
) -> None:
    """Train one network, in this process (at `place`) or on Ray, unless its checkpoint exists."""
    label, training = job.name, job.config.training
    module, behind = job.build(dataset), job.classifier_behind(dataset)
    learned: dict[str, JsonValue] = {"data": job.digest}
    if behind is not None:
        section = job.classifier.model_dump(mode="json", include={"architecture", "arguments", "pixels"})
        learned["classifier"] = {"digest": behind.digest, **section}
    if job.denoiser is not None and job.start_from is not None:
        learned["start"] = module_digest(module)
    precisions = (True, False) if training.mixed_precision == "auto" else (training.mixed_precision,)
    outcomes = {bfloat16: _metadata(job, dataset, learned | _learned(training, bfloat16)) for bfloat16 in precisions}
    settings = {bfloat16: _settings(metadata) for bfloat16, metadata in outcomes.items()}
    unnamed = [replace(metadata, classes=()) for metadata in outcomes.values()]  # earlier files do not name classes
    if _metadata_of(file) in [*outcomes.values(), *unnamed]:
        on_note(f"{label}: {file} was trained with these settings, and is kept; delete it to train again")
        return
    state_path = state_file(file)
    state = load_state(state_path, settings)
    if state is not None:
        on_note(f"{label}: going on after epoch {state.epoch} of {training.epochs} ({state_path})")
    else:
        if job.start_from is not None and job.denoiser is None:
            _start_from(job.start_from, module, outcomes[precisions[0]])
        state = TrainingState(0, weights_of(module))
    last, epoch = state, state.epoch

    def on_report(report: Report) -> None:
        nonlocal last, epoch
        if isinstance(report, str):
            on_note(report)
            return
        if report.epoch <= epoch:  # repeated after a restart of the group
            return
        if isinstance(report, ImagesDone):
            if on_images is not None:
                on_images(report.epoch, report.images, report.of)
            return
        epoch = report.epoch
        if report.state is not None:
            last = report.state
            save_state(state_path, last, settings[bool(last.bfloat16)])
        if on_progress is not None:
            on_progress(epoch, training.epochs, report.loss, report.accuracy)

    if place is not None:
        job.train(dataset, place, state, on_report)
    else:
        from drs_ray.engine.ray.training_group import run_group  # imports Ray, only if it is used

        run_group(job, job.config.engine, training.workers, state, on_report, on_note)
    module.load_state_dict(last.weights)
    module.eval()
    metadata = outcomes[bool(last.bfloat16)]
    if job.denoiser is not None:
        check_denoiser(module, metadata.image_shape, f"{label}: denoiser {metadata.architecture}")
        save_denoiser(file, module, metadata)
    else:
        check_classifier(module, metadata.image_shape, dataset.num_classes, job.sub_image)
        save_checkpoint(file, module, metadata)
    delete_file(state_path)


def _learned(training: TrainingConfig, bfloat16: bool) -> dict[str, JsonValue]:
    """Everything in the training section that the weights depend on, with the decided precision."""
    unused = {name for name, value in training if isinstance(value, Section)} - {training.method}
    settings = training.model_dump(mode="json", exclude=_NOT_LEARNED | unused)
    if not training.sees_all_sub_images:  # earlier files do not name it
        settings.get("consistency", {}).pop("across", None)
    return {**settings, "mixed_precision": bfloat16}


def _settings(metadata: CheckpointMetadata) -> dict[str, JsonValue]:
    """The settings in the checkpoint's metadata, by key; they identify the training that a state belongs to."""
    learned = {f"training.{key}": value for key, value in json.loads(metadata.training).items()}
    rest = {key: value for key, value in metadata.record.items() if key not in _NOT_SETTINGS}
    return rest | learned


def _metadata(job: TrainingJob, dataset: Dataset, learned: Mapping[str, JsonValue]) -> CheckpointMetadata:
    """The metadata of the checkpoint to be written. learned: what the weights depend on, by name."""
    cut, pixels = job.config.partition, job.classifier.pixels
    network = job.denoiser or job.classifier
    return CheckpointMetadata(
        architecture=network.architecture,
        arguments=network.arguments,
        pixels={} if pixels is None or job.denoiser is not None else pixels.record,
        partition=cut.label,
        layout=cut.layout,
        sub_images=job.sub_images,
        sigma=job.sigma,
        num_classes=0 if job.denoiser is not None else dataset.num_classes,
        image_shape=job.layout_shape(dataset),
        dataset=dataset.name,
        classes=() if job.denoiser is not None else dataset.classes or (),
        training=json.dumps(learned, separators=(",", ":")),
    )


def _metadata_of(file: str) -> CheckpointMetadata | None:
    """The metadata of the stored checkpoint; None if there is none or it cannot be read, so that it is replaced."""
    data = read_if_there(file)
    if data is None:
        return None
    try:
        return parse_checkpoint(file, data)[1]
    except ClassifierError:
        return None


def _start_from(source: str, module: nn.Module, metadata: CheckpointMetadata) -> None:
    """Load the weights of another training, such as that of a full-image classifier, as initial weights."""
    tensors, found = load_checkpoint(source, remedy="correct training.start_from")
    if found is not None and found.architecture != metadata.architecture:
        raise ClassifierError(
            f"training.start_from: {source} holds {found.architecture}, the architecture of "
            f"{sub_images_text(metadata.sub_images)} is {metadata.architecture}; name a checkpoint of this architecture"
        )
    try:
        load_tensors(module, tensors, source)
    except ClassifierError as error:
        raise ClassifierError(
            f"training.start_from: {error} (the {metadata.layout} layout makes sub-images of "
            f"{metadata.image_shape[1]}x{metadata.image_shape[2]} pixels: an architecture whose weights depend on that "
            "starts from a full image's only in the masked layout)"
        ) from error


def _check_workers(config: RunConfig) -> None:
    training = config.training
    if training.workers == 1:
        return
    if config.engine.address == "inline":
        raise ConfigError(
            f"training.workers: the address inline is one process, got {training.workers} workers; set engine.address "
            "to local or auto"
        )
    if training.batch % training.workers:
        raise ConfigError(
            f"training.batch must be a multiple of training.workers ({training.workers}), which share every batch "
            f"evenly, got {training.batch}"
        )


def _device(config: RunConfig) -> str:
    """The device of a training in this process."""
    device = config.engine.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("engine.device: cuda needs a GPU, and torch finds none here; use cpu or auto")
    return device


def _chosen(config: RunConfig, sub_images: Sequence[int] | None) -> list[int]:
    """The networks of the chosen sub-images, as positions in `config.networks`."""
    for sub_image in sub_images or ():
        if not 0 <= sub_image < len(config.classifiers):
            raise ConfigError(
                f"sub_images: partition {config.partition.label} has the sub-images 0..{len(config.classifiers) - 1}, "
                f"got {sub_image}"
            )
    every = enumerate(config.networks)
    return [network for network, group in every if sub_images is None or not set(group).isdisjoint(sub_images)]


def _check_one_network(config: RunConfig, sub_images: Sequence[int], checkpoint: str) -> None:
    """Refuse sub-images that name one checkpoint, but different networks or noise levels for it.

    Also refuse `consistency.across` where the copies cannot be divided among the network's sub-images.
    """
    if config.training.sees_all_sub_images:
        if len(sub_images) == 1:
            raise ConfigError(
                f"training.consistency.across: needs one network for several sub-images, and {checkpoint} is for "
                f"{sub_images_text(sub_images)} alone; set it to false, or name one checkpoint for several"
            )
        copies = config.training.consistency.copies
        if copies % len(sub_images):
            raise ConfigError(
                f"training.consistency.copies: across divides them among {counted(len(sub_images), 'sub-image')}, so "
                f"they must be a multiple of that, got {copies}"
            )
    every = set(ClassifierConfig.model_fields)
    used = {"clean": every - {"denoiser", "sigma"}, "mse": {"denoiser", "sigma"}}.get(config.training.method, every)
    sections = [config.classifiers[k].model_dump(mode="json", include=used) for k in sub_images]
    for k, section in zip(sub_images, sections, strict=True):
        for key, value in section.items():
            if value != sections[0][key]:
                raise ConfigError(
                    f"classifiers.{k}.{key}: must be equal for {sub_images_text(sub_images)}, which name one "
                    f"checkpoint ({checkpoint}) and so have one network, got {sections[0][key]} and {value}; make them "
                    "equal, or name a checkpoint for each"
                )


def _checkpoint_file(config: RunConfig, sub_images: Sequence[int]) -> str:
    """The checkpoint file of a classifier or denoiser, checked before training."""
    sub_image = sub_images[0]
    key, classifier = f"classifiers.{sub_image}", config.classifiers[sub_image]
    network: ClassifierConfig | DenoiserConfig | None = classifier
    if config.training.of_denoisers:
        key, network = f"{key}.denoiser", classifier.denoiser
    elif classifier.denoiser is not None and config.training.method != "clean":
        raise ConfigError(
            f"{key}.denoiser: training under noise is without one; set training.method to clean for the classifier "
            "behind it, to mse or stability for the denoiser, or remove the denoiser"
        )
    if network is None:
        raise ConfigError(
            f"{key}: the method {config.training.method} trains denoisers, and the config has none here; add one, or "
            "set training.method to one that trains classifiers"
        )
    if network.architecture in (TRANSFORMERS, PROGRAM, *FLAGS):
        raise ConfigError(
            f"{key}.architecture: {network.architecture} is only read, not trained; certify with it, or name an "
            "architecture that drs-ray builds"
        )
    checkpoint, directory = network.checkpoint, network.architecture == "diffusers"
    if checkpoint is None or not (directory or checkpoint.endswith(".safetensors")):
        raise ConfigError(
            f"{key}.checkpoint: training writes {'a directory' if directory else 'a .safetensors file'}, got "
            f"{checkpoint or 'null'}; give a path or s3:// URI such as checkpoints/"
            + ("denoiser-" if config.training.of_denoisers else "")
            + f"{config.partition.label}-{sub_image}"
            + ("" if directory else ".safetensors")
        )
    if network.entry is not None:
        raise ConfigError(f"{key}.entry: training writes a file that has no other; remove it")
    if isinstance(network, ClassifierConfig) and network.members:
        raise ConfigError(
            f"{key}.members: training is of one network; remove them, and train each member as the checkpoint of a "
            "config of its own, with another training.seed"
        )
    _check_one_network(config, sub_images, checkpoint)
    denoisers = [each.denoiser for each in config.classifiers]
    others = config.classifiers if config.training.of_denoisers else denoisers
    places = {place_of(other.checkpoint) for other in others if other is not None and other.checkpoint is not None}
    if place_of(checkpoint) in places:
        raise ConfigError(
            f"{key}.checkpoint: a classifier and a denoiser need a checkpoint each, got {checkpoint} for both; rename "
            "one"
        )
    try:
        file = checkpoint if isinstance(network, ClassifierConfig) else denoiser_file(network, sub_image)
        check_writable(file)
    except ClassifierError as error:
        raise ConfigError(f"{key}.checkpoint: {error}") from error
    return file
