"""The whole configuration of a run."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from drs_ray.config.base import Section, place_of
from drs_ray.config.certificate import CertificateConfig
from drs_ray.config.classifiers import ClassifierConfig, DenoiserConfig, pixels_warning, sigma_warning
from drs_ray.config.dataset import DatasetConfig, PartitionConfig
from drs_ray.config.engine import EngineConfig, OutputConfig
from drs_ray.config.messages import validated
from drs_ray.config.sampling import BudgetConfig, NoiseConfig
from drs_ray.config.training import TrainingConfig


class RunConfig(Section):
    """All settings of a run. See `drs-ray schema` for the JSON schema."""

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
    def networks(self) -> tuple[tuple[int, ...], ...]:
        """The sub-images of each network that `drs-ray train` trains: those that name the same checkpoint share one."""
        groups: dict[str | int, list[int]] = {}
        for k in range(len(self.classifiers)):
            checkpoint = self.trained(k).checkpoint
            groups.setdefault(k if checkpoint is None else place_of(checkpoint), []).append(k)
        return tuple(tuple(group) for group in groups.values())

    def trained(self, sub_image: int) -> ClassifierConfig | DenoiserConfig:
        """The section of the network that `drs-ray train` trains for a sub-image: its classifier, or its denoiser."""
        classifier = self.classifiers[sub_image]
        return (self.training.of_denoisers and classifier.denoiser) or classifier

    @property
    def unlikely_settings(self) -> tuple[str, ...]:
        """Warnings about settings that are allowed but probably mistakes: numbers in 8-bit steps instead of [0, 1]."""
        found = [sigma_warning(f"classifiers.{k}.sigma", one.sigma) for k, one in enumerate(self.classifiers)]
        found += [
            pixels_warning(f"classifiers.{k}.pixels", one.pixels)
            for k, one in enumerate(self.classifiers)
            if one.pixels is not None
        ]
        return tuple(warning for warning in found if warning is not None)

    def updated(self, section: str, **values: object) -> RunConfig:
        """The same config with keys of one section replaced and everything validated again.

        Raises:
            ConfigError: one line per mistake.
        """
        data = self.model_dump(mode="json")
        data[section] |= values
        return validated(RunConfig, data, "config")
