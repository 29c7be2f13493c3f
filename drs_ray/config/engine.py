"""Where votes are counted, and where they are stored."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from drs_ray.config.base import Location, Section, auto_or_bool

DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "bfloat16"]

DEFAULT_BATCH = {"cpu": 125, "cuda": 1000}
"""Forward batch by device: a divisor of the default noise block near the measured optimum (docs/benchmarks.md)."""
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"


class EngineConfig(Section):
    """Where and how the votes are counted.

    device, precision, compile, batch and the number of threads can change the last bits of a logit, and so a vote near
    a decision boundary. All but the number of threads belong to the run's identity: do not change cpus_per_worker when
    a run is resumed.
    """

    address: str = Field(
        "local",
        description="inline (this process), local (a new local Ray), auto (the running Ray), or ray://host:port.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="Largest number of workers at a time; null: as many as the cluster has room for, also when it "
        "grows. Give a number to make an autoscaler start nodes.",
    )
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs of a worker; also its number of torch threads.")
    gpus_per_worker: float | None = Field(
        None,
        ge=0,
        description="GPUs of a worker; null: 1 on cuda, 0 on cpu. At most 1 (fractions share a GPU) or a whole number.",
    )
    device: DeviceName = Field("auto", description="auto: cuda where the cluster has GPUs, else cpu.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of convolutions and products of matrices; auto: bfloat16 if the device has units for "
        "it, else float32 (decided by a run's first start).",
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="Whether classifiers are compiled by torch.compile; auto: where it was measured to be faster "
        "(decided by a run's first start).",
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
        "images_per_unit, or not cut if images_per_unit is given.",
    )
    seconds_per_unit: float = Field(
        30.0, gt=0, description="Wanted duration of a unit, if its size is chosen by measuring."
    )
    stall_seconds: float = Field(900.0, gt=0, description="End the run if it can get no worker for this long.")
    store_seconds: float = Field(
        600.0, ge=0, description="If the store fails, keep a computed part and retry storing it for up to this long."
    )
    hang_seconds: float = Field(
        900.0,
        gt=0,
        description="End a worker that has not answered this long after the longest expected duration of its unit.",
    )

    @field_validator("compile", mode="before")
    @classmethod
    def _one_rule_for_both_kinds(cls, value: object) -> object:
        return auto_or_bool(value)

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
