"""The losses of the training methods."""

from __future__ import annotations

from drs_ray.config import TrainingConfig
from drs_ray.training.consistency import consistency_loss
from drs_ray.training.gaussian import gaussian_loss
from drs_ray.training.smoothadv import smoothadv_loss
from drs_ray.training.trainee import Loss


def loss_of(training: TrainingConfig) -> Loss:
    """The loss of `training.method`, with the hyper-parameters of its section."""
    smoothing = training.label_smoothing
    if training.method == "consistency":
        own = training.consistency
        return lambda trainee, values, labels, noise, epoch: consistency_loss(
            trainee, values, labels, noise, label_smoothing=smoothing, **own.model_dump()
        )
    if training.method == "smoothadv":
        attack = training.smoothadv
        return lambda trainee, values, labels, noise, epoch: smoothadv_loss(
            trainee, values, labels, noise, epoch, label_smoothing=smoothing, **attack.model_dump()
        )
    return lambda trainee, values, labels, noise, epoch: gaussian_loss(
        trainee, values, labels, noise, label_smoothing=smoothing
    )
