"""The losses of the training methods."""

from __future__ import annotations

from drs_ray.config import TrainingConfig
from drs_ray.training.consistency import consistency_loss
from drs_ray.training.denoised import Denoising, clean_loss, mse_loss, stability_loss
from drs_ray.training.gaussian import gaussian_loss
from drs_ray.training.macer import macer_loss
from drs_ray.training.smoothadv import smoothadv_loss
from drs_ray.training.smoothmix import smoothmix_loss
from drs_ray.training.trainee import Loss


def loss_of(training: TrainingConfig, sigma: float, denoising: Denoising | None = None) -> Loss:
    """The loss of `training.method`, with the hyper-parameters of its section.

    sigma: of the noise, in pixel units. denoising: for the methods that train denoisers.
    """
    smoothing = training.label_smoothing
    if training.method == "clean":
        return lambda trainee, values, labels, noise, epoch: clean_loss(
            trainee, values, labels, label_smoothing=smoothing
        )
    if training.method == "mse":
        return lambda trainee, values, clean, noise, epoch: mse_loss(trainee, values, clean, noise)
    if training.method == "stability":
        classifier = denoising.classifier if denoising is not None else None
        if classifier is None:
            raise ValueError("the method stability needs the classifier behind the denoiser")
        return lambda trainee, values, clean, noise, epoch: stability_loss(
            trainee, values, clean, noise, classifier=classifier
        )
    if training.method == "consistency":
        own = training.consistency
        return lambda trainee, values, labels, noise, epoch: consistency_loss(
            trainee, values, labels, noise, label_smoothing=smoothing, **own.model_dump(exclude={"across"})
        )
    if training.method == "smoothadv":
        attack = training.smoothadv
        return lambda trainee, values, labels, noise, epoch: smoothadv_loss(
            trainee, values, labels, noise, epoch, label_smoothing=smoothing, **attack.model_dump()
        )
    if training.method == "macer":
        radius = training.macer
        return lambda trainee, values, labels, noise, epoch: macer_loss(
            trainee, values, labels, noise, sigma=sigma, label_smoothing=smoothing, **radius.model_dump()
        )
    if training.method == "smoothmix":
        mixing = training.smoothmix
        return lambda trainee, values, labels, noise, epoch: smoothmix_loss(
            trainee, values, labels, noise, epoch, label_smoothing=smoothing, **mixing.model_dump()
        )
    return lambda trainee, values, labels, noise, epoch: gaussian_loss(
        trainee, values, labels, noise, label_smoothing=smoothing
    )
