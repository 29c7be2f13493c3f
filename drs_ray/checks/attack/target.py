"""The attacked smoothed classifier: its votes, counted as in a run, and soft leads, which have a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor, nn

from drs_ray.certificates.rule import Rule
from drs_ray.errors import ClassifierError
from drs_ray.models.inference import VotingClassifier
from drs_ray.smoothing.keys import NoiseKey, Phase
from drs_ray.smoothing.lattice import LEVELS
from drs_ray.smoothing.noise import STANDARD_NORMAL, keyed_batches
from drs_ray.smoothing.voting import Sampler, count_votes

_ROUNDING_UP = 1 + 1e-10  # a norm summed in float64 is off by less than d 2^-53


@dataclass(frozen=True, eq=False)
class Target:
    """K base classifiers with their noise, and the vote that joins them to one classifier (docs/theory.md 2).

    classifiers, samplers: one per sub-image, on one device. rule: of the run's certificates; only its vote and weights
    matter. dataset: the data set's digest. seed: of the attack's noise, of which the run has seen no sample.
    """

    classifiers: tuple[VotingClassifier, ...]
    samplers: tuple[Sampler, ...]
    rule: Rule
    num_classes: int
    dataset: str
    seed: int

    @property
    def device(self) -> torch.device:
        """The device of classifiers and noise."""
        return self.samplers[0].device

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise standard deviation of each sub-image, pixel units."""
        return tuple(sampler.sigma for sampler in self.samplers)

    def allowed(self, images: Tensor) -> Tensor:
        """Project images to those that the run's certificates cover; differentiable.

        Gaussian noise: all of R^d, so nothing is clipped. Lattice noise: 8-bit images; images are only clipped to
        [0, 1] here, and rounded in `exactly_allowed`.
        """
        return images.clamp(0, 1) if self._is_lattice else images

    def exactly_allowed(self, images: Tensor) -> Tensor:
        """As `allowed`, and rounded to 8-bit images under lattice noise: float32, ready to be counted."""
        if not self._is_lattice:
            return images.float()
        return (images.double().clamp(0, 1) * LEVELS).round().float() / LEVELS

    def distance(self, moved: Tensor, image: Tensor) -> float:
        """l2 norm of the difference of two exactly allowed images, pixel units, rounded up.

        Lattice noise: the theorem's norm is that of the 8-bit images, which float32 only approximates (theory 7).
        """
        first, second = moved.double(), image.double()
        if self._is_lattice:
            first, second = ((pixels * LEVELS).round() / LEVELS for pixels in (first, second))
        return float((first - second).norm()) * _ROUNDING_UP

    def votes(self, image: Tensor, image_id: int, phase: Phase, samples: int) -> NDArray[np.int64]:
        """Votes of every sub-image for every class, by the run's own noise law and counting: int64 [K, C].

        Args:
            image: float32 [C, H, W]; see `exactly_allowed`.
            image_id: with the phase, the key of the noise.
            phase: search, scaling or confirmation.
            samples: noisy copies of each sub-image.

        Raises:
            As `count_votes`.
        """
        return np.stack(
            [
                count_votes(item.module, image, sampler, self._key(image_id, k, phase), 0, samples, self.num_classes)
                for k, (item, sampler) in enumerate(zip(self.classifiers, self.samplers, strict=True))
            ]
        )

    def soft_leads(
        self, images: Tensor, image_ids: Sequence[int], predictions: Tensor, step: int, samples: int
    ) -> Tensor:
        """Soft leads of the predictions over every class, differentiable in the images: float64 [N, C].

        The lead of a prediction over itself is inf. A sample's vote between the prediction and a rival is made soft by
        Phi(lead of its logits / their standard deviation under the noise): this is neither flat for a confident
        classifier, nor dependent on the scale of its logits. If the logits' lead is Gaussian, as for half-spaces, these
        leads have the same gradient as the smoothed classifier's own leads up to a factor, through all sub-images.

        Args:
            images: float32 [N, C, H, W], on the device; not clipped.
            image_ids: N ids that key the noise.
            predictions: int64 [N], the classes whose lead is computed.
            step: number of the step; each step has its own samples.
            samples: noisy copies of each sub-image.

        Raises:
            ClassifierError: a classifier fails, or torch cannot differentiate it.
        """
        total = torch.zeros((len(images), self.num_classes), dtype=torch.float64, device=self.device)
        for k, (classifier, sampler) in enumerate(zip(self.classifiers, self.samplers, strict=True)):
            values = sampler.partition.extract(images, k)
            noise = torch.stack([self._noise(image_id, k, step, samples, values) for image_id in image_ids])
            noisy = sampler.partition.arrange((values[:, None] + sampler.sigma * noise).flatten(0, 1), k)
            logits = (
                _differentiable(classifier.plain, noisy, k, self.num_classes).reshape(len(images), samples, -1).double()
            )
            lost = _lost_shares(logits, predictions)
            if self.rule.vote == "mean":
                total = total + (0.5 - lost)
            else:
                total = total - self._scales[k] * torch.special.ndtri(lost.clamp(1e-300, 1 - 1e-15))
        return total.scatter(1, predictions[:, None], torch.inf)

    def leading_rival(self, votes: NDArray[np.int64], prediction: int) -> int:
        """The class other than the prediction with the largest score by these votes [K, C].

        Shares of votes are clipped half a vote away from 0 and 1, where the probit vote's scores are infinite.
        """
        samples = votes.sum(axis=1, keepdims=True)
        if self.rule.vote == "mean":
            scores = (votes / samples).sum(axis=0)
        else:
            scores = np.array(self._scales) @ ndtri(np.clip(votes, 0.5, samples - 0.5) / samples)
        scores[prediction] = -np.inf
        return int(scores.argmax())

    @property
    def _scales(self) -> list[float]:
        """w_k sigma_k of the probit vote."""
        weights = self.rule.weights or (1.0,) * len(self.sigmas)
        return [weight * sigma for weight, sigma in zip(weights, self.sigmas, strict=True)]

    @property
    def _is_lattice(self) -> bool:
        return self.samplers[0].law == "lattice"

    def _key(self, image_id: int, sub_image: int, phase: Phase) -> NoiseKey:
        return NoiseKey(self.seed, image_id, sub_image, phase, self.dataset)

    def _noise(self, image_id: int, sub_image: int, step: int, samples: int, values: Tensor) -> Tensor:
        """Standard normal numbers of one step, in one keyed block: [samples, C, d_k]."""
        (drawn,) = keyed_batches(
            STANDARD_NORMAL,
            self._key(image_id, sub_image, "search"),
            step * samples,
            samples,
            values_shape=(values.shape[1], values.shape[2]),
            block=samples,
            batch=samples,
            device=self.device,
        )
        return drawn


def _lost_shares(logits: Tensor, predictions: Tensor) -> Tensor:
    """Soft share of samples in which each class is ahead of the prediction: [N, C], differentiable.

    Args:
        logits: float64 [N, samples, C]. A class with the logit -inf (masked) loses this sample to any class that is
            not, as when votes are counted, and gets no gradient from it.
        predictions: int64 [N].
    """
    masked = torch.isneginf(logits)
    own = predictions[:, None, None].expand(-1, logits.shape[1], 1)
    compared = ~(masked | masked.gather(2, own))
    logits = logits.masked_fill(masked, 0.0)
    lead = logits.gather(2, own) - logits
    if bool(compared.all()):
        spread = lead.detach().std(dim=1, keepdim=True, correction=0)
    else:
        held = lead.detach().masked_fill(~compared, torch.nan)
        spread = (held - held.nanmean(dim=1, keepdim=True)).square().nanmean(dim=1, keepdim=True).sqrt().nan_to_num()
    soft = torch.erfc(lead / spread.clamp_min(1e-30) / 2**0.5) / 2  # torch's ndtr has no lower tail
    ahead = (masked.gather(2, own) & ~masked).to(soft.dtype)
    return torch.where(compared, soft, ahead).mean(dim=1)


def _differentiable(module: nn.Module, inputs: Tensor, sub_image: int, num_classes: int) -> Tensor:
    """Logits with a gradient, checked."""
    no_gradient = (
        f"sub-image {sub_image}: the classifier has no gradient with respect to its input, which the attack searches "
        "by; keep the path from input to logits in torch, without detach, numpy or no_grad"
    )
    try:
        logits: Tensor = module(inputs.contiguous(memory_format=torch.channels_last))
    except Exception as error:  # the user's module may raise anything
        if "requires grad" in str(error):  # torch's message when a tensor with a gradient is converted to an array
            raise ClassifierError(no_gradient) from error
        raise ClassifierError(
            f"sub-image {sub_image}: the classifier failed on noisy inputs {list(inputs.shape)} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); lower --samples if memory ran out"
        ) from error
    if not logits.requires_grad:
        raise ClassifierError(no_gradient)
    if logits.shape != (len(inputs), num_classes) or not bool(torch.isfinite(logits.amax(dim=1)).all()):
        raise ClassifierError(
            f"sub-image {sub_image}: logits of noisy inputs must be [{len(inputs)}, {num_classes}] and finite, or -inf "
            f"beside a finite one, got {list(logits.shape)}; check the classifier and its checkpoint"
        )
    return logits
