"""How classifiers are trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from drs_ray.config.base import Location, Section, auto_or_bool
from drs_ray.config.dataset import ImagesConfig


class ConsistencyConfig(Section):
    """The method `consistency` (Jeong and Shin 2020): answers to noisy copies of one image should agree."""

    copies: int = Field(2, ge=2, description="Noisy copies of an image in each step (m in the paper).")
    across: bool = Field(
        False,
        description="Divide the copies among all sub-images of one network, so that its answers to different "
        "sub-images of an image should agree, too.",
    )
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


class MacerConfig(Section):
    """The method `macer` (Zhai et al. 2020): the loss rewards the soft classifier's certified radius."""

    copies: int = Field(16, ge=1, description="Noisy copies of an image in each step (k in the paper).")
    radius_weight: float = Field(12.0, ge=0, description="Weight of the hinge on the certified radius (lambda).")
    inverse_temperature: float = Field(
        16.0, gt=0, description="Factor of the logits in the certified radius, against too soft answers (beta)."
    )
    margin: float = Field(
        8.0, gt=0, le=10, description="Radius above which an image costs nothing, in units of sigma / 2 (gamma)."
    )


class SmoothMixConfig(Section):
    """The method `smoothmix` (Jeong et al. 2021): mixtures with adversarial examples should get unsure answers."""

    copies: int = Field(2, ge=1, description="Noisy copies of an image and of its mixture in each step (m).")
    steps: int = Field(4, ge=1, description="Gradient steps of the attack (T).")
    step_size: float = Field(
        1.0,
        gt=0,
        description="l2 length of such a step on the sub-image's own pixels, in pixel units (alpha); the paper takes 2 "
        "sigma on CIFAR-10.",
    )
    mix_weight: float = Field(5.0, ge=0, description="Weight of the loss of the mixtures (eta).")
    one_step: bool = Field(
        False, description="Mix from the attack's first step on, and train on it instead of the clean image."
    )
    warm_up: int = Field(10, ge=1, description="Epochs in which mix_weight rises linearly.")


class TrainingConfig(Section):
    """Training of the sub-image classifiers and their denoisers (`drs-ray train`). The defaults are the demo's."""

    split: str = Field("train", description="Split of the data set to train on.")
    hold_out: ImagesConfig | None = Field(
        None,
        description="Images of the split that are not trained on, to compare settings on them: certify with the same "
        "dataset.split, and these images as dataset.images.",
    )
    start_from: Location | None = Field(
        None,
        min_length=1,
        description="Checkpoint (path or s3://) whose weights every training starts from, for example that of a "
        "full-image classifier; {sub_image} stands for the number of the sub-image; null: random weights.",
    )
    method: Literal["gaussian", "consistency", "smoothadv", "macer", "smoothmix", "clean", "mse", "stability"] = Field(
        "gaussian",
        description="Of classifiers under noise: gaussian (Cohen et al. 2019), or one of the sections below. clean: "
        "classifiers without noise, to stand behind denoisers. mse, stability: the denoisers (Salman et al. 2020).",
    )
    consistency: ConsistencyConfig = Field(default_factory=lambda: ConsistencyConfig())
    smoothadv: SmoothAdvConfig = Field(default_factory=lambda: SmoothAdvConfig())
    macer: MacerConfig = Field(default_factory=lambda: MacerConfig())
    smoothmix: SmoothMixConfig = Field(default_factory=lambda: SmoothMixConfig())
    epochs: int = Field(40, ge=1, description="Passes of each network over the training images.")
    batch: int = Field(128, ge=1, description="Images per step, those of all workers together.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw, or sgd with momentum.")
    learning_rate: float = Field(0.005, gt=0, description="Peak rate of the optimizer.")
    schedule: Literal["warm-up-cosine", "cosine", "step"] = Field(
        "warm-up-cosine",
        description="How the rate changes: rises over a fifth of the steps, then a cosine to 0; a cosine to 0; a tenth "
        "after every step_epochs.",
    )
    step_epochs: int = Field(30, ge=1, description="Epochs between two steps of the schedule `step`.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay of the optimizer.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Share of the target spread over all classes.")
    shift: int = Field(0, ge=0, description="Augmentation: random shifts of up to this number of pixels.")
    flip: bool = Field(False, description="Augmentation: random horizontal flips.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of weights, order, augmentation and noise.")
    mixed_precision: Literal["auto"] | bool = Field(
        "auto",
        description="Forward and backward in bfloat16 where that is safe; auto: if the device has units for bfloat16 "
        "when a training begins. A resumed training keeps its precision.",
    )
    workers: int = Field(
        1,
        ge=1,
        description="Workers that train one classifier together, each with engine.cpus_per_worker and "
        "engine.gpus_per_worker.",
    )
    loaders: int = Field(0, ge=0, description="Processes of each worker that read images ahead; 0: read in the loop.")
    checkpoint_every: int = Field(1, ge=1, description="Epochs between two saved states, from which training resumes.")

    @property
    def of_denoisers(self) -> bool:
        """Whether the method trains the denoisers, not the classifiers."""
        return self.method in ("mse", "stability")

    @property
    def sees_all_sub_images(self) -> bool:
        """Whether a step of one network for several sub-images sees each image in all of them, not in one in turn."""
        return self.method == "consistency" and self.consistency.across

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _one_rule_for_both_kinds(cls, value: object) -> object:
        return auto_or_bool(value)
