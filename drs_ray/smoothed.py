"""`SmoothedClassifier`: certificates and predictions in a notebook, with the votes and the rules of the batch system.

It uses the same `count_votes`, keyed noise and rules as a run, without Ray and without a store. With the same
partition, classifiers, sigmas, law, seed, data set, block, batch, precision, compilation, image ids and number of torch
threads it gives the votes and certificates of a run.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor, nn

from drs_ray import arguments
from drs_ray.arguments import checked, optional, several, shown, whole
from drs_ray.certificates.attainable import best_radius, least_samples
from drs_ray.certificates.prediction import least_samples as prediction_samples
from drs_ray.certificates.prediction import predicted_classes
from drs_ray.certificates.radii import CertifiedRadii, rule_names
from drs_ray.certificates.rule import LEAST_ALPHA, Rule
from drs_ray.config import DEFAULT_BATCH, Precision, float32, sigma_warning
from drs_ray.counts.history import Counts
from drs_ray.errors import ClassifierError, ConfigError, DataError, counted
from drs_ray.models.check import FirstBatch, tolerance_of
from drs_ray.models.inference import VotingClassifier, voting_classifier
from drs_ray.models.precision import has_bfloat16
from drs_ray.models.tensors import module_digest
from drs_ray.models.torch_state import fixed_kernels, plain_torch
from drs_ray.results.selected_votes import SelectedVotes, selected_votes
from drs_ray.results.tables import ABSTAIN
from drs_ray.smoothing.keys import NoiseKey, Phase
from drs_ray.smoothing.laws import LawName
from drs_ray.smoothing.partition import Partition
from drs_ray.smoothing.voting import Sampler, count_votes

ImageIds = Sequence[int] | NDArray[np.integer[Any]] | Tensor
"""Whole numbers, one per image."""


@dataclass(frozen=True, eq=False)
class Certificates:
    """Certificates of N images, K sub-images, C classes, with every number that they were derived from.

    image_ids: int64 [N], the ids that the noise was keyed by. prediction: int64 [N], -1 = abstains. radius: float64
    [N], l2 in pixel units, 0 where abstaining. selected_class: int64 [N], class chosen by the selection samples.
    selection_votes, estimation_votes: int64 [N, K, C]. p_lower: float64 [N, K], lower bound of the selected class's
    probability (if the pooled bound decides: of its mean over the sub-images). rival_upper: float64 [N, K], upper bound
    of the deciding rival's probability. Both are steps of the computation: only the radius is certified. margin:
    float64 [N, K], pixel units, signed. rules: each image's rule. alpha: failure probability of an image's certificate,
    without what drawing lattice noise adds (docs/theory.md 7: below 1e-7 for n = 100,000 and 3x32x32 values).
    """

    image_ids: NDArray[np.int64]
    prediction: NDArray[np.int64]
    radius: NDArray[np.float64]
    selected_class: NDArray[np.int64]
    selection_votes: NDArray[np.int64]
    estimation_votes: NDArray[np.int64]
    p_lower: NDArray[np.float64]
    rival_upper: NDArray[np.float64]
    margin: NDArray[np.float64]
    rules: tuple[str, ...]
    alpha: float

    def __len__(self) -> int:
        return len(self.prediction)


class SmoothedClassifier:
    """The smoothed classifier of K base classifiers on a partition: predicts, certifies, and abstains where unsure.

    Every image's noise is keyed by (seed, data set, image id, sub-image, phase, block). The same call gives the same
    answer; calls with different numbers of samples share samples. So quote one certificate per image: the largest of
    several is not a certificate. Images of different calls that are evaluated together need different `image_ids`.
    """

    @checked(
        partition=arguments.instance_of("drs_ray.smoothing.partition:Partition", "a Partition of make_partition"),
        num_classes=partial(arguments.whole, least=2, below=2**31),
        rule=optional(arguments.instance_of("drs_ray.certificates.radii:Rule", "None or a Rule")),
        weights=optional(arguments.numbers),
        seed=partial(arguments.whole, least=0),
        dataset=arguments.text,
        block=partial(arguments.whole, least=1),
        batch=optional(partial(arguments.whole, least=1)),
        compile=arguments.flag,
    )
    @plain_torch()
    def __init__(
        self,
        partition: Partition,
        classifiers: Sequence[nn.Module] | nn.Module,
        sigmas: Sequence[float] | float,
        *,
        num_classes: int,
        rule: Rule | None = None,
        weights: Sequence[float] | None = None,
        law: LawName = "lattice",
        seed: int = 0,
        dataset: str = "",
        block: int = 1000,
        batch: int | None = None,
        device: str | torch.device = "cpu",
        precision: Literal["auto"] | Precision = "auto",
        compile: bool = False,
    ) -> None:
        """Check the arguments. The classifiers are tried on the first images, when the number of channels is known.

        Args:
            partition: how images are split and laid out, from `make_partition`.
            classifiers: K modules, float32 [b, C, h, w] of the sub-image as laid out -> logits [b, num_classes]. Each
                call of `predict` and `certify` copies them, in eval mode, as the batch system does
                (`drs_ray.models.inference`), and votes with the copies; the modules are not changed. A single module
                is allowed for K = 1.
            sigmas: K noise standard deviations, pixel units, in [0.001, 100]; rounded to float32, as the noise is. A
                single number is allowed for K = 1.
            num_classes: number of classes C.
            rule: how votes become certificates; None: the config's default for this K (probit vote with rivals,
                staircase for K > 1, pooled too where K > 1 and sigmas and weights are equal).
            weights: weights of the default rule's probit vote, fixed before the images are seen; None: all 1.
            law: lattice, for 8-bit images (multiples of 1/255), or gaussian for any images.
            seed: part of every noise key.
            dataset: digest of the data set to which `image_ids` refer (`Dataset.digest`), to repeat a run's votes; any
                other text keys other noise.
            block: samples per keyed block of noise.
            batch: forward batch; None: 125 on the CPU, 1000 on CUDA, at most `block`.
            device: device of the copies and the noise; CPU and CUDA noise are different streams.
            precision: float32 or bfloat16, of the copies; auto: bfloat16 if the device has units for it.
            compile: vote with compiled copies, as a run with `engine.compile: true`.

        Raises:
            ConfigError: an invalid value, or a rule that does not fit. ClassifierError: not a torch module.
        """
        k = len(partition)
        if isinstance(classifiers, nn.Module) and not isinstance(classifiers, nn.ModuleList):
            classifiers = (classifiers,)
        if not isinstance(classifiers, Sequence | nn.ModuleList):
            raise ConfigError(f"classifiers must be a list of modules, one per sub-image, got {shown(classifiers)}")
        each: tuple[Any, ...] = several(lambda name, value: value, "numbers", or_one=True)("sigmas", sigmas)
        for name, entries in (("classifiers", len(classifiers)), ("sigmas", len(each))):
            if entries != k:
                raise ConfigError(f"{name} must have one entry per sub-image, {k}, got {entries}")
        for index, module in enumerate(classifiers):
            if not isinstance(module, nn.Module):
                raise ClassifierError(f"classifiers[{index}] must be a torch.nn.Module, got {type(module).__name__}")
            if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
                raise ClassifierError(f"classifiers[{index}] has tensors without values (meta); load its weights first")
        if not all(isinstance(sigma, Real) and math.isfinite(sigma) and 1e-3 <= float(sigma) <= 100 for sigma in each):
            raise ConfigError(f"sigmas must be in [0.001, 100], in pixel units, got {list(each)}")
        if law not in ("lattice", "gaussian"):
            raise ConfigError(f"law must be lattice or gaussian, got '{law}'")
        if rule is not None and weights is not None:
            raise ConfigError("weights are a part of the rule: give rule=Rule(weights=...) or weights, not both")
        if precision not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"precision must be auto, float32 or bfloat16, got '{precision}'")
        where = _device(device)
        batch = batch or min(DEFAULT_BATCH.get(where.type, block), block)
        self._partition = partition
        self._classifiers = tuple(classifiers)
        self._sigmas = tuple(float32(sigma) for sigma in each)
        self._classes = num_classes
        self._seed = seed
        self._dataset = dataset
        self._fixed_rule = rule
        self._weights = None if weights is None else tuple(float(weight) for weight in weights)
        self._device = where
        self._precision: Precision = (
            precision if precision != "auto" else "bfloat16" if has_bfloat16(str(where)) else "float32"
        )
        self._compile = compile
        self._compiled: dict[tuple[int, str, int], VotingClassifier] = {}
        self._unnamed: dict[int, bytes] = {}  # position in a call -> digest of the image whose noise it keyed
        self._samplers = [Sampler(partition, sigma, block, batch, where, law) for sigma in self._sigmas]
        one_vote = csr_array(np.eye(1, self._classes, dtype=np.int64))
        zero = np.zeros(1, np.int64)
        self._certified(Counts(zero, zero, (one_vote,) * k, (one_vote,) * k), 0.001)  # raises if the rule does not fit
        for doubt in [sigma_warning("sigmas", sigma) for sigma in self._sigmas]:
            if doubt is not None:
                warnings.warn(doubt, stacklevel=4)  # the caller's line, outside two decorators
                break

    def rule(self) -> Rule:
        """How votes become certificates, for any alpha."""
        if self._fixed_rule is not None:
            return self._fixed_rule
        return Rule.resolved(self._sigmas, weights=self._weights)

    @plain_torch()
    def predict(
        self,
        x: Tensor | NDArray[np.float32],
        n: int,
        alpha: float = 0.001,
        image_ids: ImageIds | None = None,
    ) -> NDArray[np.int64]:
        """The smoothed classifier's class of each image, or -1; wrong with probability at most alpha.

        K = 1: PREDICT of Cohen et al. 2019, a two-sided binomial test of the two classes with the most votes. K > 1:
        of the n samples, min(100, n // 2) choose a class and the others certify it; the class is returned if its
        certified radius is > 0, which implies that it wins the vote at x itself.

        Args:
            x: float32 [N, C, H, W] or [C, H, W], in [0, 1].
            n: noisy copies of each sub-image; K > 1: at least 2.
            alpha: failure probability of one image's prediction.
            image_ids: as in `certify`.

        Returns:
            int64 [N] (N = 1 for a single image), -1 where it abstains.

        Raises:
            As `certify`.
        """
        n = whole("n", n, 1 if len(self._partition) == 1 else 2)
        if len(self._partition) > 1:
            selection = min(100, n // 2)
            return self.certify(x, n - selection, alpha, selection, image_ids).prediction
        alpha, images = _probability(alpha), self._images(x)
        ids = self._ids_of(images, image_ids)
        if n < (least := prediction_samples(alpha)):
            _warn_abstains(n, "samples", alpha, least)
        return predicted_classes(csr_array(self._votes(images, ids, "estimation", n)[:, 0]), alpha)

    @plain_torch()
    def certify(
        self,
        x: Tensor | NDArray[np.float32],
        n: int,
        alpha: float = 0.001,
        selection: int = 100,
        image_ids: ImageIds | None = None,
    ) -> Certificates:
        """Certified l2 radii: no perturbation of x smaller than the radius changes the smoothed classifier's class.

        Args:
            x: float32 [N, C, H, W] or [C, H, W], in [0, 1].
            n: estimation samples of each sub-image.
            alpha: failure probability of one image's whole certificate.
            selection: samples of each sub-image that choose the class.
            image_ids: N different ids in [0, 2^63) that key the noise, also as an array or tensor of whole numbers;
                use the ids of the data set to repeat a run's votes; None: 0 .. N - 1.

        Returns:
            One certificate per image (N = 1 for a single image).

        Raises:
            ConfigError: invalid n, alpha, selection or ids. DataError: images of another shape or range.
            ClassifierError: a classifier that fails, or whose logits have another shape or are not finite.
        """
        n, selection = whole("n", n, 1), whole("selection", selection, 1)
        alpha, images = _probability(alpha), self._images(x)
        ids = self._ids_of(images, image_ids)
        with_rule = self.rule(), self._sigmas
        if best_radius(*with_rule, n, alpha, self._classes) == 0:
            _warn_abstains(n, "estimation samples", alpha, least_samples(*with_rule, alpha, self._classes))
        chosen, estimated = self._votes(images, ids, "selection", selection), self._votes(images, ids, "estimation", n)
        per_sub_image = [tuple(csr_array(votes[:, k]) for k in range(votes.shape[1])) for votes in (chosen, estimated)]
        rule, votes, radii = self._certified(Counts(ids, np.full_like(ids, -1), *per_sub_image), alpha)
        return Certificates(
            image_ids=ids,
            prediction=np.where(radii.radius > 0, votes.selected, ABSTAIN),
            radius=radii.radius,
            selected_class=votes.selected,
            selection_votes=chosen,
            estimation_votes=estimated,
            p_lower=radii.p_lower,
            rival_upper=radii.rival_upper,
            margin=radii.margin,
            rules=tuple(rule_names(rule, radii.halved)),
            alpha=alpha,
        )

    def _certified(self, counts: Counts, alpha: float) -> tuple[Rule, SelectedVotes, CertifiedRadii]:
        try:
            rule = self.rule()
            votes = selected_votes(counts, rule)
            radii = votes.radii(self._sigmas, rule, alpha)
        except ValueError as error:  # its message says what does not fit
            raise ConfigError(str(error)) from error
        return rule, votes, radii

    def _votes(self, images: Tensor, ids: NDArray[np.int64], phase: Phase, samples: int) -> NDArray[np.int64]:
        """int64 [N, K, C]."""
        votes = np.empty((len(images), len(self._partition), self._classes), np.int64)
        with fixed_kernels(self._device.type):
            classifiers = self._voting_classifiers(images.shape[1])
            for k, (classifier, sampler) in enumerate(zip(classifiers, self._samplers, strict=True)):
                watched = FirstBatch(classifier.module, classifier.plain)
                for at, image in enumerate(images):
                    module = classifier.module if at else watched
                    key = NoiseKey(self._seed, int(ids[at]), k, phase, self._dataset)
                    votes[at, k] = count_votes(module, image, sampler, key, 0, samples, self._classes)
                watched.check(self._classes, k, tolerance_of(self._precision, self._device.type))
        return votes

    def _ids_of(self, images: Tensor, image_ids: ImageIds | None) -> NDArray[np.int64]:
        """The given ids, or 0, 1, ... with a warning if these have keyed the noise of other images before."""
        if image_ids is not None:
            return _ids(image_ids, len(images))
        digests = [hashlib.sha256(image.contiguous().numpy().tobytes()).digest() for image in images]
        if any(self._unnamed.setdefault(at, digest) != digest for at, digest in enumerate(digests)):
            warnings.warn(
                "image 0 and those after it share their noise with other images of an earlier call, which makes their "
                "certificates depend on each other; give every image of a data set its own id: image_ids=[...]",
                stacklevel=4,  # the caller's line, outside a decorator
            )
            self._unnamed.update(enumerate(digests))
        return np.arange(len(images))

    def _images(self, x: Tensor | NDArray[np.float32]) -> Tensor:
        """Check the images; return them on the CPU, float32 [N, C, H, W]."""
        height, width = self._partition.height, self._partition.width
        if not isinstance(x, Tensor | np.ndarray):
            raise DataError(f"x must be a tensor or a numpy array, got {type(x).__name__}")
        if isinstance(x, Tensor) and (x.is_meta or x.layout != torch.strided):
            raise DataError(f"x must be a dense tensor with values, got {x.layout} on {x.device}; try x.to_dense()")
        if x.dtype not in (torch.float32, np.float32):
            raise DataError(f"x must be float32 in [0, 1], got {x.dtype}; 8-bit pixels are float32(x) / 255")
        images = x.detach().cpu() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))  # it may be read-only
        if images.ndim not in (3, 4) or tuple(images.shape[-2:]) != (height, width) or not images.numel():
            raise DataError(
                f"x must be [N, C, {height}, {width}] or [C, {height}, {width}] and not empty, got {list(images.shape)}"
            )
        images = images.reshape(-1, *images.shape[-3:])
        outside = ~((images >= 0) & (images <= 1))  # NaN is outside
        if bool(outside.any()):
            at = int(outside.flatten(1).any(dim=1).nonzero()[0])
            value = images[outside][0].item()
            raise DataError(f"x must be in [0, 1], got {value:.9g} in image {at}; normalise inside the classifier")
        return images

    def _voting_classifiers(self, channels: int) -> list[VotingClassifier]:
        """New copies of the classifiers for voting, because a classifier may have been trained since the last call."""
        return [self._voting_classifier(k, module, channels) for k, module in enumerate(self._classifiers)]

    def _voting_classifier(self, k: int, module: nn.Module, channels: int) -> VotingClassifier:
        key = (k, module_digest(module), channels) if self._compile else None
        if key is not None and key in self._compiled:
            return self._compiled[key]
        made = voting_classifier(
            module,
            precision=self._precision,
            compile=self._compile,
            device=self._device,
            batch=self._samplers[k].batch,
            image_shape=self._partition.layout_shape(k, channels),
            num_classes=self._classes,
            sub_image=k,
        )
        if key is not None:
            self._compiled[key] = made
        return made


def _device(device: str | torch.device) -> torch.device:
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device must be cpu or cuda, got '{device}'") from error
    if where.type not in DEFAULT_BATCH or (where.type == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"device must be cpu, or cuda where there is a GPU, got '{device}'")
    return where


def _warn_abstains(n: int, what: str, alpha: float, least: int) -> None:
    warnings.warn(
        f"with {n:,} {what} of each sub-image every image abstains, whatever the votes, at alpha {alpha:g}; use "
        f"{least:,} at least",
        stacklevel=4,  # the caller's line, outside a decorator
    )


def _probability(alpha: float) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not LEAST_ALPHA <= alpha < 1:
        raise ConfigError(f"alpha must be in (0, 1), at least {LEAST_ALPHA:g}, got {shown(alpha)}")
    return float(alpha)


def _ids(image_ids: ImageIds, images: int) -> NDArray[np.int64]:
    ids = several(partial(whole, least=0, below=2**63), "ids")("image_ids", image_ids)
    if len(ids) != images or len(set(ids)) != len(ids):
        raise ConfigError(
            f"image_ids must be {counted(images, 'different id')}, one per image, got {len(ids)}: {list(ids[:5])}"
        )
    return np.array(ids, np.int64)
