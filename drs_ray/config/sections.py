"""The run's configuration: YAML in, one frozen and validated `RunConfig` out, and a JSON schema for editors.

Every mistake is reported with the path of the key, the rule, the value and the remedy. Validation needs neither torch
nor Ray. sigma and radii are in pixel units: pixels lie in [0, 1] and an l2 distance of 1 is one full-scale pixel.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from drs_ray.arguments import checked, shown, texts
from drs_ray.certificates.rule import Rule
from drs_ray.config.class_names import read_class_names
from drs_ray.errors import ConfigError, counted

DatasetName = Literal[
    "mnist5k", "mnist", "cifar10", "cifar100", "svhn", "stl10", "tiny-imagenet", "imagenet", "folder", "parquet"
]
PartitionName = Literal["none", "checkerboard", "checkerboard-2024", "interleave"]
LayoutName = Literal["packed", "masked", "filled"]
DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "bfloat16"]

_Model = TypeVar("_Model", bound=BaseModel)


def float32(value: float) -> float:
    """The nearest float32: noise is added in float32, so its standard deviation is one, and certificates use it too."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def expanded(text: str) -> str:
    """A path or URI with `$NAME` and `${NAME}` replaced by environment variables, and `$$` by a dollar sign.

    Raises:
        ValueError: a variable that is not set, or is empty.
    """

    def value_of(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        name = found[1] or found[2]
        if name is None:
            raise ValueError("a variable must be $NAME or ${NAME}; write $$ for a dollar sign")
        if not os.environ.get(name):
            raise ValueError(f"the environment variable {name} is not set; set it, or write $$ for a dollar sign")
        return os.environ[name]

    return re.sub(r"\$(?:\$|([A-Za-z_]\w*)|\{(?:([A-Za-z_]\w*)\})?)", value_of, text, flags=re.ASCII)


def _expanded_where_read(text: str, info: ValidationInfo) -> str:
    return expanded(text) if info.context == _AS_READ else text


_AS_READ = "as the user wrote it"
"""Context of a validation that expands variables: those of a run's record are expanded already, maybe elsewhere."""

Location = Annotated[str, AfterValidator(_expanded_where_read)]
"""A path or URI; a config file may name environment variables in it."""

Sigma = Annotated[float, Field(ge=1e-3, le=100), AfterValidator(float32)]
"""Noise standard deviation in pixel units; far below 1/255 the sum of pixel and noise would hardly be Gaussian."""


class Section(BaseModel):
    """A part of the config: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_not_a_number(cls, value: object, info: ValidationInfo) -> object:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("must not be true or false")
        return value


class ImagesConfig(Section):
    """Which images of the split are certified: a range with a step, or an explicit list of ids."""

    start: int = Field(0, ge=0, description="First image id.")
    stop: int | None = Field(None, ge=1, description="End of the range (exclusive); null: end of the split.")
    skip: int = Field(1, ge=1, description="Every skip-th image of the range (Cohen et al. use 20).")
    ids: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="Explicit image ids, instead of the range."
    )

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if self.ids is not None:
            if (self.start, self.stop, self.skip) != (0, None, 1):
                raise ValueError("give either ids or start/stop/skip, not both")
            if not self.ids:
                raise ValueError("ids is empty: name at least one image id, or remove the key for all images")
            if len(set(self.ids)) != len(self.ids):
                raise ValueError("ids has duplicates: an image is certified once per run")
        elif self.stop is not None and self.stop <= self.start:
            raise ValueError(f"the range start={self.start} stop={self.stop} selects no image; stop must be > start")
        return self


class DatasetConfig(Section):
    """Which images: a data set by name, its split, and the image ids."""

    name: DatasetName = Field(description="mnist5k comes with the `demo` extra; the others are read from root.")
    root: Location | None = Field(
        None, description="Directory that holds the data set (not needed for mnist5k); parquet: or an s3:// URI."
    )
    endpoint_url: str | None = Field(
        None,
        pattern=r"^https?://[^@\s]+$",
        description="parquet: endpoint of an S3-compatible server; null: AWS_ENDPOINT_URL or AWS.",
    )
    split: str = Field("test", description="train or test; a sub-directory of root for folder; parquet: as packed.")
    download: bool = Field(False, description="Let torchvision download the data set into root.")
    image_size: int | None = Field(
        None,
        ge=1,
        description="folder, imagenet, tiny-imagenet: resize the short side to 8/7 of this, then crop the centre.",
    )
    classes: tuple[str, ...] | None = Field(
        None,
        min_length=2,
        json_schema_extra={"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": ["string", "null"]}]},
        description="folder, imagenet, tiny-imagenet: names of all classes in order of class number, as a list or as a "
        "file with a name per line; null: the class directories in text order.",
    )
    images: ImagesConfig = Field(default_factory=lambda: ImagesConfig())

    @field_validator("classes", mode="before")
    @classmethod
    def _names_in_a_file(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            return read_class_names(Path(_expanded_where_read(value, info)).expanduser())
        if isinstance(value, list | tuple):  # YAML reads the names 0, 1, 10 as numbers
            return [str(name) if type(name) is int else name for name in value]
        return value

    @field_validator("classes")
    @classmethod
    def _names_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        twice = [name for name, count in Counter(value or ()).items() if count > 1]
        if twice:
            raise ValueError(f"names {twice[0]!r} twice: a class has one number")
        return value

    @model_validator(mode="after")
    def _root_is_named(self) -> Self:
        if self.name != "mnist5k" and self.root is None:
            raise ValueError(f"{self.name} needs root: the directory that holds the data set")
        folders = ("folder", "imagenet", "tiny-imagenet")
        for key, value in (("image_size", self.image_size), ("classes", self.classes)):
            if value is not None and self.name not in folders:
                raise ValueError(f"{key} applies to {', '.join(folders)}, not to {self.name}")
        if self.endpoint_url is not None and self.name != "parquet":
            raise ValueError(f"endpoint_url applies to parquet, not to {self.name}")
        return self


class PartitionConfig(Section):
    """How pixels are split into sub-images, and how a sub-image is laid out for its classifier."""

    name: PartitionName = Field(
        description="none: the whole image (randomized smoothing); checkerboard: two halves (dual r. s.); "
        "checkerboard-2024: the mask that the DRS authors' checkpoints need; interleave: rows x columns sub-images."
    )
    interleave: tuple[int, int] | None = Field(
        None,
        description="[rows, columns], for the name interleave: pixel (r, c) belongs to sub-image "
        "(r mod rows) * columns + (c mod columns).",
    )
    layout: LayoutName = Field(
        "packed",
        description="packed: the own pixels of each row pushed together; masked: full size, other pixels 0; "
        "filled: masked, and each own pixel has the maximum of its 2x2 block added (the DRS authors' CIFAR-10 input).",
    )

    @field_validator("interleave", mode="before")
    @classmethod
    def _two_whole_numbers(cls, value: object) -> object:
        if value is None or (
            isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int and n >= 1 for n in value)
        ):
            return value
        raise ValueError("must be two whole numbers >= 1, [rows, columns], for example [2, 2]")

    @model_validator(mode="after")
    def _interleave_fits(self) -> Self:
        if self.name == "interleave" and self.interleave is None:
            raise ValueError("the name interleave needs interleave: [rows, columns], for example [2, 2]")
        if self.name != "interleave" and self.interleave is not None:
            raise ValueError(f"interleave applies to the name interleave, not to {self.name}; remove it")
        if self.interleave is not None and not 2 <= self.sub_images <= 64:
            rows, columns = self.interleave
            raise ValueError(f"interleave must make 2 to 64 sub-images, [{rows}, {columns}] makes {self.sub_images}")
        return self

    @property
    def sub_images(self) -> int:
        """Number of sub-images K."""
        if self.interleave is not None:
            return self.interleave[0] * self.interleave[1]
        return 2 if self.name.startswith("checkerboard") else 1

    @property
    def label(self) -> str:
        """The name that tells one partition from all others, for example interleave-2x2: checkpoints carry it."""
        return self.name if self.interleave is None else f"{self.name}-{self.interleave[0]}x{self.interleave[1]}"


class PixelsConfig(Section):
    """How a classifier wants its pixels; done after the noise, in the order of these keys."""

    resize: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        None, description="[height, width] of the classifier's input: bilinear; null: the sub-image as laid out."
    )
    range: tuple[float, float] = Field(
        (0.0, 1.0), description="What black and white are to the classifier, for example [0, 255] or [-1, 1]."
    )
    mean: tuple[float, ...] | None = Field(None, description="Subtracted: one number per channel, in that range.")
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="Divided by: one number per channel, in that range."
    )

    @field_validator("range")
    @classmethod
    def _black_is_below_white(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError("must be [black, white] with black < white, for example [0, 255]")
        return value

    @property
    def record(self) -> dict[str, JsonValue]:
        """As plain JSON data: a part of a run's identity, and of the metadata of checkpoints."""
        return self.model_dump(mode="json", exclude_none=True)


def _check_entry(entry: str | None, checkpoint: str | None) -> None:
    if entry is not None and checkpoint is None:
        raise ValueError("entry is a part of a checkpoint: name the checkpoint, or remove entry")


class DenoiserConfig(Section):
    """A denoiser before a base classifier (denoised smoothing). It sees the noisy sub-image of its classifier alone."""

    architecture: str = Field(
        min_length=1, description="dncnn, or your own factory as `module:function`, called with `image_shape`."
    )
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict, description="Extra keyword arguments of the architecture or factory."
    )
    checkpoint: Location | None = Field(None, description="As a classifier's. Only a factory may do without.")
    entry: str | None = Field(None, min_length=1, description="As a classifier's.")

    @model_validator(mode="after")
    def _entry_of_a_checkpoint(self) -> Self:
        _check_entry(self.entry, self.checkpoint)
        return self


class ClassifierConfig(Section):
    """The base classifier of one sub-image and its noise level."""

    architecture: str = Field(
        min_length=1,
        description="A built-in name, `torchvision:<name>`, `timm:<name>`, `torch.export`, or your own factory as "
        "`module:function` (see docs/classifiers.md).",
    )
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict, description="Extra keyword arguments of the architecture or factory."
    )
    checkpoint: Location | None = Field(
        None,
        description=".safetensors, .pt, .pth, .ckpt, .pt.tar, .pth.tar, or .pt2 (torch.export); a path or s3:// URI. "
        "Only a factory may do without.",
    )
    entry: str | None = Field(
        None,
        min_length=1,
        description="Where in the checkpoint the weights are: the key of a state_dict (a.b: within one another), or "
        "what the names of the weights begin with; null: where they are usually kept.",
    )
    pixels: PixelsConfig | None = Field(
        None, description="How the classifier wants its pixels; null: in [0, 1] plus noise, as laid out."
    )
    denoiser: DenoiserConfig | None = Field(None, description="A denoiser before it; null: none.")
    sigma: Sigma = Field(description="Noise standard deviation in pixel units ([0, 1]).")

    @model_validator(mode="after")
    def _normalised_once(self) -> Self:
        twice = {"mean", "std"} & self.arguments.keys() if self.pixels is not None else set()
        if twice and ":" not in self.architecture:
            raise ValueError(
                f"arguments has {' and '.join(sorted(twice))}: name all that is done to pixels under pixels"
            )
        return self

    @model_validator(mode="after")
    def _entry_of_a_checkpoint(self) -> Self:
        if self.entry is not None and self.architecture == "torch.export":
            raise ValueError("entry: a program of torch.export has none; remove it")
        _check_entry(self.entry, self.checkpoint)
        return self

    @property
    def is_complete(self) -> bool:
        """Whether all weights come from checkpoints, none from the code of a factory."""
        return self.checkpoint is not None and (self.denoiser is None or self.denoiser.checkpoint is not None)


class NoiseConfig(Section):
    """The noise law and the key of its streams."""

    law: Literal["lattice", "gaussian"] = Field(
        "lattice",
        description="lattice: exact integer Gaussian noise in steps of 1/255 (8-bit images, which all data sets have); "
        "gaussian: float32 noise.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Root of every noise key of the run.")
    block: int = Field(1000, ge=1, le=1_000_000, description="Samples per keyed block of noise.")


class BudgetConfig(Section):
    """Noise samples per image and sub-image: a fixed number, or adaptive stages that double up to it."""

    selection: int = Field(100, ge=1, le=10**7, description="Samples that choose the class.")
    estimation: int = Field(
        100_000, ge=1, le=10**9, description="Samples that bound its probability: all of them, or the last stage's."
    )
    stages: int = Field(
        1,
        ge=1,
        le=30,
        description="1: a fixed number. More: adaptive, each stage twice the last (8 is a good choice; 11 where "
        "one radius is asked for).",
    )
    planned: int | None = Field(
        None, ge=1, le=10**9, description="Largest estimation that stages are planned for, to extend the run to later."
    )

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        planned = self.planned or self.estimation
        if planned < 2 ** (self.stages - 1):
            raise ValueError(
                f"{self.stages} stages that double up to {planned} samples: the first would be empty; use fewer stages"
            )
        allowed = [-(-planned // 2 ** (self.stages - 1 - stage)) for stage in range(self.stages)]
        if self.estimation not in allowed:
            raise ValueError(
                f"estimation must be one of the stages planned up to {planned} ({', '.join(map(str, allowed))}), "
                f"got {self.estimation}"
            )
        return self


def _auto_or_bool(value: object) -> object:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError("must be auto, true or false")
    return value


DEFAULT_BATCH = {"cpu": 125, "cuda": 1000}
"""Forward batch by device: a divisor of the default noise block near the measured optimum (docs/benchmarks.md)."""
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"


class EngineConfig(Section):
    """Where and how the votes are counted.

    device, precision, compile, batch and the number of threads can change the last bits of a logit, and with them a
    vote near a decision boundary: all but the last belong to the run's identity, keep cpus_per_worker the same when a
    run is resumed.
    """

    address: str = Field(
        "local",
        description="inline (this process), local (a Ray of its own), auto (the running Ray), or ray://host:port.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="Most workers at a time; null: what the cluster has room for now and as it grows. "
        "Name a number to make an autoscaler start nodes.",
    )
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs of a worker; also its number of torch threads.")
    gpus_per_worker: float | None = Field(
        None, ge=0, description="GPUs of a worker; null: 1 on cuda, 0 on cpu. Fractions share a GPU."
    )
    device: DeviceName = Field("auto", description="auto: cuda where the cluster has GPUs, else cpu.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of convolutions and products of matrices; auto: bfloat16 where the device has units for it, else "
        "float32 (decided by a run's first start).",
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="Whether torch.compile makes the classifiers; auto: where that was measured to pay (decided by a "
        "run's first start).",
    )
    batch: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Forward batch; null: chosen by device. Part of the run's identity.",
    )
    resources: dict[str, Annotated[float, Field(ge=1e-4, strict=True)]] = Field(
        default_factory=dict, description="Custom Ray resources of a worker, for example {fast_gpu: 1}."
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Labels that a worker's node must have, as Ray's label selectors: value, !value, in(a, b) or "
        "!in(a, b), for example {ray.io/accelerator-type: A100}.",
    )
    images_per_unit: int | None = Field(
        None,
        ge=1,
        description="Images of one unit of work (fixed by a run's first start); null: measured, then chosen.",
    )
    samples_per_unit: int | None = Field(
        None,
        ge=1,
        description="Cut an image's estimation samples into units of at most this many; null: chosen with "
        "images_per_unit, or do not where that is given.",
    )
    seconds_per_unit: float = Field(
        30.0, gt=0, description="How long a unit should take, where its size is chosen by measuring."
    )
    stall_seconds: float = Field(900.0, gt=0, description="Give up when no worker could be had for so long.")
    store_seconds: float = Field(
        600.0, ge=0, description="Keep a computed part and go on trying to store it while the store fails for so long."
    )
    hang_seconds: float = Field(
        900.0,
        gt=0,
        description="End a worker that gives no answer for so long beyond the slowest that its unit should be.",
    )

    @field_validator("compile", mode="before")
    @classmethod
    def _one_rule_for_both_kinds(cls, value: object) -> object:
        return _auto_or_bool(value)

    @field_validator("address")
    @classmethod
    def _address_is_known(cls, value: str) -> str:
        if value in ("inline", "local", "auto") or re.fullmatch(r"(ray://)?[^\s:/]+:\d+", value):
            return value
        raise ValueError("must be inline, local, auto, ray://host:port or host:port")

    @field_validator("resources")
    @classmethod
    def _resources_are_custom(cls, value: dict[str, float]) -> dict[str, float]:
        keys = {"CPU": "engine.cpus_per_worker", "GPU": "engine.gpus_per_worker"}
        for name in value:
            if name in keys:
                raise ValueError(f"{name} is not a custom resource; use {keys[name]}")
            if name in ("memory", "object_store_memory") or not name.strip():
                raise ValueError(f"{name!r} is not a custom resource; remove it")
        return value

    @field_validator("labels")
    @classmethod
    def _labels_are_selectors(cls, value: dict[str, str]) -> dict[str, str]:
        for key, selector in value.items():
            if not re.fullmatch(rf"([A-Za-z0-9.-]+/)?{_LABEL}", key):
                raise ValueError(f"{key!r} is not a label's key, for example ray.io/accelerator-type or zone")
            if not re.fullmatch(rf"!?({_LABEL}|in\({_LABEL}(, ?{_LABEL})*\))", selector):
                raise ValueError(f"{key} must be value, !value, in(a, b) or !in(a, b), not {selector!r}")
        return value


class CertificateConfig(Section):
    """How counts become certificates. Nothing here changes a count; a run can be reduced again at other values."""

    alpha: float = Field(
        0.001, ge=1e-50, lt=1, description="Failure probability of one image's whole certificate, in (0, 1)."
    )
    vote: Literal["probit", "mean"] = Field(
        "probit",
        description="How sub-images are joined: probit for any number of them, mean (the DRS paper's) for two.",
    )
    rivals: bool = Field(True, description="Bound the other classes too, not only the selected one.")
    confidence: Literal["auto", "bonferroni", "staircase"] = Field(
        "auto", description="How sub-images share alpha; auto: staircase for two or more of them, else bonferroni."
    )
    pooled: bool | None = Field(
        None,
        description="Where selection votes are unanimous, pool the samples of all sub-images too, for half of alpha; "
        "null: where there are two or more with equal sigmas and weights, as it needs.",
    )
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="Weight of each sub-image in the probit vote; null: all 1."
    )
    radius: float | None = Field(
        None,
        gt=0,
        description="Certify this one radius (pixel units) or nothing, from fewer samples with budget.stages of 11; "
        "replaces rivals, confidence and pooled. null: the largest radius that an image's votes certify.",
    )
    radii: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
        min_length=1,
        description="Radii of the certified-accuracy table, increasing, in pixel units.",
    )

    @field_validator("radii")
    @classmethod
    def _radii_increase(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(b <= a for a, b in itertools.pairwise(value)):
            raise ValueError("must be strictly increasing, for example [0, 0.25, 0.5]")
        return value

    def rule(self, sigmas: Sequence[float]) -> Rule:
        """The rule that this section means for sub-images with these sigmas (pixel units).

        Raises:
            ValueError: one that does not fit them.
        """
        settings = self.vote, self.confidence, self.weights, self.rivals, self.pooled, self.radius
        try:
            return Rule.resolved(sigmas, *settings)
        except ValueError as error:
            raise ValueError(f"certificate.{error}") from error

    @property
    def grid(self) -> tuple[float, ...]:
        """The radii of the table; where one radius is certified they end there, for nothing is said of larger ones."""
        if self.radius is None:
            return self.radii
        return (*(radius for radius in self.radii if radius < self.radius), self.radius)


class OutputConfig(Section):
    """Where the run is stored: a directory or an s3:// prefix of its own."""

    uri: Location = Field(
        min_length=1, description="Directory, or s3://bucket/prefix. Credentials: the AWS chain only."
    )
    endpoint_url: str | None = Field(
        None,
        pattern=r"^https?://[^@\s]+$",
        description="Endpoint of an S3-compatible server; null: AWS_ENDPOINT_URL or AWS.",
    )


class ConsistencyConfig(Section):
    """The method `consistency` (Jeong and Shin 2020): answers to noisy copies of one image are to agree."""

    copies: int = Field(2, ge=2, description="Noisy copies of an image in each step (m in the paper).")
    kl_weight: float = Field(
        10.0, ge=0, description="Weight of the divergence of each copy's answer from their mean (lambda)."
    )
    entropy_weight: float = Field(0.5, ge=0, description="Weight of the entropy of the mean answer (eta).")


class SmoothAdvConfig(Section):
    """The method `smoothadv` (Salman et al. 2019): training on attacks of the smoothed classifier."""

    copies: int = Field(2, ge=1, description="Noisy copies of an image that the attack averages over (m_train).")
    steps: int = Field(10, ge=1, description="Gradient steps of the attack (T).")
    epsilon: float = Field(
        1.0, gt=0, description="l2 radius of the attack on the sub-image's own pixels, in pixel units."
    )
    warm_up: int = Field(10, ge=1, description="Epochs in which the attack's radius rises linearly to epsilon.")


class TrainingConfig(Section):
    """Training of the sub-image classifiers under noise (`drs-ray train`). The defaults are those of the demo."""

    split: str = Field("train", description="Split of the data set to train on.")
    hold_out: ImagesConfig | None = Field(
        None,
        description="Images of the split that are not trained on, so that settings can be compared on them: certify "
        "with dataset.split the same and these as dataset.images.",
    )
    start_from: Location | None = Field(
        None,
        min_length=1,
        description="Checkpoint (path or s3://) whose weights every sub-image's classifier starts from, for example "
        "that of a full-image classifier; null: random weights.",
    )
    method: Literal["gaussian", "consistency", "smoothadv"] = Field(
        "gaussian", description="Noise alone (Cohen et al. 2019), or noise and one of the sections below."
    )
    consistency: ConsistencyConfig = Field(default_factory=lambda: ConsistencyConfig())
    smoothadv: SmoothAdvConfig = Field(default_factory=lambda: SmoothAdvConfig())
    epochs: int = Field(40, ge=1)
    batch: int = Field(128, ge=1, description="Images per step, those of all workers together.")
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(0.005, gt=0, description="Peak rate of the optimizer.")
    schedule: Literal["warm-up-cosine", "cosine", "step"] = Field(
        "warm-up-cosine",
        description="How the rate changes: rises over a fifth of the steps, then a cosine to 0; a cosine to 0; a tenth "
        "after every step_epochs.",
    )
    step_epochs: int = Field(30, ge=1, description="Of the schedule step: epochs between two steps.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of sgd.")
    weight_decay: float = Field(1e-4, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Share of the target spread over all classes.")
    shift: int = Field(0, ge=0, description="Augmentation: random shifts of up to so many pixels.")
    flip: bool = Field(False, description="Augmentation: random horizontal flips.")
    seed: int = Field(0, ge=0, lt=2**63)
    mixed_precision: Literal["auto"] | bool = Field(
        "auto",
        description="Forward and backward in bfloat16 where that is safe; auto: on devices with units for bfloat16, as "
        "a training begins. It goes on as it began.",
    )
    workers: int = Field(
        1,
        ge=1,
        description="Workers that train one classifier together, each with engine.cpus_per_worker and "
        "engine.gpus_per_worker.",
    )
    loaders: int = Field(0, ge=0, description="Processes of each worker that read images ahead; 0: read in the loop.")
    checkpoint_every: int = Field(1, ge=1, description="Epochs between two saved states, from which training resumes.")

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _one_rule_for_both_kinds(cls, value: object) -> object:
        return _auto_or_bool(value)


class RunConfig(Section):
    """Everything that a run is told. See `drs-ray schema` for the JSON schema."""

    dataset: DatasetConfig
    partition: PartitionConfig
    classifiers: tuple[ClassifierConfig, ...] = Field(
        min_length=1, description="One per sub-image, in the partition's order."
    )
    noise: NoiseConfig = Field(default_factory=lambda: NoiseConfig())
    budget: BudgetConfig = Field(default_factory=lambda: BudgetConfig())
    engine: EngineConfig = Field(default_factory=lambda: EngineConfig())
    certificate: CertificateConfig = Field(default_factory=lambda: CertificateConfig())
    training: TrainingConfig = Field(default_factory=lambda: TrainingConfig())
    output: OutputConfig

    @field_validator("output", mode="before", json_schema_input_type=OutputConfig | str)
    @classmethod
    def _output_may_be_a_string(cls, value: object) -> object:
        return {"uri": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        k = self.partition.sub_images
        if len(self.classifiers) != k:
            raise ValueError(
                f"classifiers must have one entry per sub-image: partition {self.partition.label} has {k}, "
                f"got {len(self.classifiers)}"
            )
        self.certificate.rule(self.sigmas)
        samples_per_unit = self.engine.samples_per_unit
        if samples_per_unit is not None and samples_per_unit % self.noise.block:
            raise ValueError(
                f"engine.samples_per_unit must be a multiple of noise.block ({self.noise.block}), "
                f"got {samples_per_unit}"
            )
        return self

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise standard deviation of each sub-image, in pixel units."""
        return tuple(classifier.sigma for classifier in self.classifiers)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is allowed and hardly meant, a line each: numbers in 8-bit steps where pixels lie in [0, 1]."""
        found = [sigma_doubt(f"classifiers.{k}.sigma", one.sigma) for k, one in enumerate(self.classifiers)]
        found += [
            _pixels_doubt(f"classifiers.{k}.pixels", one.pixels)
            for k, one in enumerate(self.classifiers)
            if one.pixels is not None
        ]
        return tuple(doubt for doubt in found if doubt is not None)

    def updated(self, section: str, **values: object) -> RunConfig:
        """The same config with keys of one section replaced and everything validated again.

        Raises:
            ConfigError: one line per mistake.
        """
        data = self.model_dump(mode="json")
        data[section] |= values
        return parse_config(data)


MUCH_NOISE = 4.0
"""A sigma above this drowns any image: it is hardly meant in pixel units."""


def sigma_doubt(name: str, sigma: float) -> str | None:
    """What to say of a sigma that is allowed and hardly meant; None: nothing."""
    if sigma <= MUCH_NOISE:
        return None
    return (
        f"{name}: {sigma:g} is in pixel units, where black is 0 and white is 1: little is left of an image; if it was "
        f"meant in 8-bit steps, give {sigma:g}/255 = {sigma / 255:.4g}"
    )


def _pixels_doubt(name: str, pixels: PixelsConfig) -> str | None:
    """What to say of a mean that is no shade between black and white, or a std beyond their distance."""
    black, white = pixels.range
    odd = [("mean", value) for value in pixels.mean or () if not black <= value <= white]
    odd += [("std", value) for value in pixels.std or () if value > 2 * (white - black)]
    if not odd:
        return None
    key, value = odd[0]
    return (
        f"{name}.{key}: {value:g} does not fit {name}.range, where black is {black:g} and white is {white:g}; if it "
        f"was meant in 8-bit steps, set {name}.range: [0, 255]"
    )


@checked(overrides=texts)
def load_config(path: str | os.PathLike[str] | Mapping[str, Any], overrides: Iterable[str] = ()) -> RunConfig:
    """Read a YAML file, apply `a.b=c` overrides (values are YAML), expand variables in paths, validate.

    Args:
        path: of the file; or its content as a mapping.
        overrides: each `key.path=value`.

    Raises:
        ConfigError: naming the file, the key, the rule, the value and the remedy.
    """
    if isinstance(path, Mapping):
        return parse_config(apply_overrides(path, overrides))
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"a config must be the path of a YAML file, a mapping or a RunConfig, got {shown(path)}")
    return _validated(RunConfig, read_config(Path(path), overrides), str(path), _AS_READ)


def config_of(config: RunConfig | str | os.PathLike[str] | Mapping[str, Any]) -> RunConfig:
    """A config as it is, or what `load_config` makes of anything else."""
    return config if isinstance(config, RunConfig) else load_config(config)


def load_dataset_config(path: str | Path, overrides: Iterable[str] = ()) -> DatasetConfig:
    """The section `dataset` of a YAML file, which need not have any other. Errors: see `load_config`."""
    return _validated(_DatasetAlone, read_config(path, overrides), str(path), _AS_READ).dataset


class _DatasetAlone(BaseModel):
    model_config = ConfigDict(extra="ignore")

    dataset: DatasetConfig


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A YAML file with `a.b=c` overrides, not validated. Errors: see `load_config`."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {file}: cannot be read ({error}); give the path of a YAML file") from error
    try:
        data = _read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"config {file}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"config {file}: must be a mapping of sections (dataset, partition, ...), got {_short(data)}")
    return apply_overrides(data, overrides)


def parse_config(data: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Validate a mapping; `source` names it in messages. Variables in its paths are not expanded.

    Raises:
        ConfigError: one line per mistake.
    """
    return _validated(RunConfig, data, source)


def _validated(model: type[_Model], data: Mapping[str, Any], source: str, context: str | None = None) -> _Model:
    try:
        return model.model_validate(data, context=context)
    except ValidationError as error:
        raise ConfigError(explain(error, source)) from error


def explain(error: ValidationError, source: str) -> str:
    """What pydantic found, as one line per mistake that begins with `source`."""
    found = error.errors()
    return "\n".join(f"{source}: {_explain(item)}" for item in found if not _is_echo(item, found))


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `data` with each `a.b.0.c=value` set; the value is read as YAML (`null`, `[1, 2]`, `0.5`).

    Raises:
        ConfigError: an override that is not `key=value`, or whose path runs through a scalar or a missing entry.
    """
    result: dict[str, Any] = copy.deepcopy(dict(data))
    for override in overrides:
        path, separator, raw = override.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise ConfigError(f"--set {override}: must be key.path=value, for example --set budget.estimation=1000")
        try:
            value = _read_yaml(raw)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not valid YAML; quote it") from error
        _set(result, keys, value, override)
    return result


def json_schema() -> str:
    """The JSON schema of the config file, for editors and validators."""
    return json.dumps(RunConfig.model_json_schema(), indent=2)


class _Loader(yaml.SafeLoader):
    """YAML, with 1e5 read as the number that it is (YAML 1.1 wants 1.0e+5)."""


def _unique_keys(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping without duplicate keys: YAML would let the last one win without a word."""
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_keys)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def _set(target: Any, keys: Sequence[str], value: object, override: str) -> None:
    head, *rest = keys
    if isinstance(target, list):
        if not head.isdigit() or int(head) >= len(target):
            raise ConfigError(f"--set {override}: '{head}' must be an index below {len(target)}")
        index = int(head)
        if rest:
            _set(target[index], rest, value, override)
        else:
            target[index] = value
    elif isinstance(target, dict):
        if not rest:
            target[head] = value
            return
        if head == "output" and isinstance(target.get(head), str):
            target[head] = {"uri": target[head]}
        if target.get(head) is None:
            target[head] = {}
        _set(target[head], rest, value, override)
    else:
        raise ConfigError(f"--set {override}: '{head}' lies below a plain value ({_short(target)}); check the path")


def _explain(item: Any) -> str:
    """One pydantic error as `path: rule, got value; remedy`."""
    location = tuple(item["loc"])
    path = ".".join(str(part) for part in location) or "config"
    kind = item["type"]
    value = _short(item.get("input"))
    if kind == "extra_forbidden":
        known = _known_keys(location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"allowed here: {', '.join(known)}"
        if location[0] == "certificate" and _OTHER_NORMS.search(str(location[-1])):
            remedy = (
                "certificates are of l2 norms; one of radius r also holds for l1 norms below r, and for linf norms "
                "below r / sqrt(d), d = channels x height x width"
            )
        return f"{path}: unknown key; {remedy}"
    if kind == "missing":
        return f"{path}: required key is missing; add it (`drs-ray schema` lists all keys)"
    if kind == "value_error":
        message = str(item["ctx"]["error"])
        return (
            message
            if path == "config"
            else f"{path}: {message}" + ("" if isinstance(item.get("input"), dict) else f", got {value}")
        )
    rules = {
        "greater_than": "must be > {gt}",
        "greater_than_equal": "must be >= {ge}",
        "less_than": "must be < {lt}",
        "less_than_equal": "must be <= {le}",
        "literal_error": "must be {expected}",
        "finite_number": "must be a finite number",
        "too_short": "must have at least {least}",
        "tuple_type": "must be a list, for example [0, 1]",
        "string_type": "must be text",
        "int_parsing": "must be a whole number",
        "int_type": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_parsing": "must be a number",
        "float_type": "must be a number",
        "bool_parsing": "must be true or false",
        "bool_type": "must be true or false",
        "model_type": "must be a mapping of keys to values",
        "dict_type": "must be a mapping of keys to values",
        "model_attributes_type": "must be a mapping of keys to values",
    }
    context = item.get("ctx", {})
    context |= {"least": counted(context.get("min_length", 0), "entry", "entries")}
    rule = rules[kind].format(**context) if kind in rules else str(item["msg"]).lower()
    if path == "certificate.alpha" and kind in ("greater_than_equal", "less_than"):
        rule = "must be in (0, 1)" if kind == "less_than" else "must be in (0, 1), at least 1e-50"
    return f"{path}: {rule}, got {value}"


_OTHER_NORMS = re.compile(r"norm|threat|attack|perturbation|(^|_)l_?(inf|[0-9p])|^p$|linf|patch|epsilon|^eps$", re.I)
"""Keys by which somebody may ask for certificates against other perturbations."""


def _is_echo(item: Any, found: Sequence[Any]) -> bool:
    """A list whose only entry is bad is reported again, as too short: only the entry is to be mended."""
    at = tuple(item["loc"])
    return item["type"] == "too_short" and any(
        len(other["loc"]) > len(at) and tuple(other["loc"][: len(at)]) == at for other in found
    )


def _known_keys(location: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(str(part))
        found = _section_of(field.annotation) if field is not None else None
        if found is None:
            return []
        model = found
    return sorted(model.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_of(argument)
        if found is not None:
            return found
    return None


def _short(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
