"""The run's configuration: YAML in, one frozen and validated `RunConfig` out.

Validation needs neither torch nor Ray.
"""

from drs_ray.config.base import Section, expanded, float32
from drs_ray.config.certificate import CertificateConfig
from drs_ray.config.classifiers import ClassifierConfig, DenoiserConfig, PixelsConfig, sigma_warning
from drs_ray.config.dataset import DatasetConfig, PartitionConfig
from drs_ray.config.engine import DEFAULT_BATCH, EngineConfig, Precision
from drs_ray.config.files import (
    apply_overrides,
    config_of,
    json_schema,
    load_config,
    load_dataset_config,
    parse_config,
    read_config,
)
from drs_ray.config.messages import validated
from drs_ray.config.run import RunConfig
from drs_ray.config.training import TrainingConfig

__all__ = [
    "DEFAULT_BATCH",
    "CertificateConfig",
    "ClassifierConfig",
    "DatasetConfig",
    "DenoiserConfig",
    "EngineConfig",
    "PartitionConfig",
    "PixelsConfig",
    "Precision",
    "RunConfig",
    "Section",
    "TrainingConfig",
    "apply_overrides",
    "config_of",
    "expanded",
    "float32",
    "json_schema",
    "load_config",
    "load_dataset_config",
    "parse_config",
    "read_config",
    "sigma_warning",
    "validated",
]
