"""Metadata for checkpoints that tests write themselves."""

from __future__ import annotations

from typing import Any

from drs_ray.models.checkpoints import CheckpointMetadata


def trained_for(*, sub_image: int, **given: Any) -> CheckpointMetadata:
    """Metadata for a sub-image. given: arguments of `load_classifier`, which are the same."""
    return CheckpointMetadata(sub_images=(sub_image,), **given)
