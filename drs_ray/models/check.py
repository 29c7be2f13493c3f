"""Tests whether a base classifier is a fixed function of each sample alone: before it votes, and on a counted batch.

The tests compare centred logits, which decide a vote: each sample's logits minus its largest, cut at -20. So a class
that is masked with a huge negative logit, or an offset that all classes share, hides no difference. docs/theory.md 8
says what the tests cannot find.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from drs_ray.certificates.rounding import apart
from drs_ray.errors import ClassifierError, counted
from drs_ray.models.building import brief
from drs_ray.models.tensors import few, tensor_digests

_SAMPLES = 8
_LOWEST = -20.0  # a class with this centred logit has e^-20 of the leading class's softmax
_ALL_LOGITS = 128  # up to this number of classes a probe keeps every logit
_DIRECTIONS = 64
_FLOAT32_EPS = float(torch.finfo(torch.float32).eps)


def tolerance_of(precision: str, device: str) -> float:
    """How much logits may differ between kernels for different batch shapes, as a share of their spread.

    Args:
        precision: precision of the products in the network, float32 or bfloat16.
        device: cpu, cuda or cuda:N.
    """
    if precision == "bfloat16":
        return 2.0**-4  # a product is rounded to 2^-9 of itself, and the errors of a deep network add up
    return 2.0**-13 if device == "cpu" else 2.0**-8  # a GPU may multiply float32 as TF32, to 2^-11


def check_classifier(
    module: nn.Module,
    image_shape: tuple[int, int, int],
    num_classes: int,
    sub_image: int,
    device: str | torch.device = "cpu",
    precision: str = "float32",
) -> tuple[float, ...]:
    """Test a classifier on eight fixed noisy inputs: it must be in eval mode and pass `check_samples`.

    Returns:
        Its probe, with which the probe of another copy must agree (`same_probe`).

    Raises:
        ClassifierError: naming the sub-image, and what is wrong and expected.
    """
    in_training = [name or type(part).__name__ for name, part in module.named_modules() if part.training]
    if in_training:
        raise ClassifierError(
            f"{_who(sub_image)} is in train mode ({few(in_training)}); call eval() on every part of it"
        )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand((_SAMPLES, *image_shape), generator=generator, dtype=torch.float32, device="cpu")
    noise = torch.randn(pixels.shape, generator=generator, dtype=torch.float32, device="cpu")
    inputs = (pixels + 0.5 * noise).to(device)
    return _probe(check_samples(module, inputs, num_classes, sub_image, tolerance_of(precision, inputs.device.type)))


def check_samples(
    module: nn.Module,
    inputs: Tensor,
    num_classes: int,
    sub_image: int,
    tolerance: float,
    voted: Tensor | None = None,
) -> Tensor:
    """Test on some samples whether a classifier is a fixed function of each sample alone.

    It must return float logits [N, num_classes], for each sample with a finite one and without NaN and +inf. Its
    answers must be the same when they are repeated at once, in reverse order, one by one, in smaller batches, and at
    the end. It must draw no random numbers of torch, numpy or Python, and must not change its parameters and buffers.
    If every centred logit is within the tolerance, only votes with a leading gap below the tolerance can differ.
    Cost: seven passes of the N samples.

    Args:
        module: the classifier, in eval mode.
        inputs: float32 [N, C, h, w], N >= 2, on the module's device; the module gets copies.
        num_classes: C of the logits.
        sub_image: index of the classifier's sub-image, for errors.
        tolerance: share of the logits' spread that kernels may differ by, from `tolerance_of`.
        voted: the logits of these samples in a batch that was counted, [N, num_classes], or None.

    Returns:
        The classifier's logits, float64 [N, num_classes], on the inputs' device.

    Raises:
        ClassifierError: naming the sub-image and the cause.
    """
    who = _who(sub_image)

    def answer(samples: Tensor) -> Tensor:
        return _answer(module, samples, num_classes, who)

    logits = answer(inputs)  # before the states are read: lazy layers draw their weights in the first call
    random_states = _random_states(inputs.device)
    tensors = tensor_digests(module)
    again = answer(inputs)
    backwards = answer(inputs.flip(0)).flip(0)
    alone = torch.cat([answer(one) for one in inputs.unsqueeze(1)])
    cut = len(inputs) * 3 // 8 or 1
    parts = torch.cat([answer(inputs[:cut]), answer(inputs[cut:])])
    later = answer(inputs)
    drawn = [name for name, state in _random_states(inputs.device).items() if state != random_states[name]]
    if drawn:
        raise ClassifierError(
            f"{who} draws random numbers ({', '.join(drawn)}) when it is called; it must be a fixed function of each "
            "sample: no dropout, no noise of its own"
        )
    changed = [name for name, digest in tensor_digests(module).items() if tensors.get(name) != digest]
    if changed:
        raise ClassifierError(
            f"{who} changes its own tensors when it is called ({few(changed)}); it must be a fixed function of each "
            "sample: no running statistics, no state"
        )
    for other, fault in (
        (again, "gives another answer to the same inputs the second time"),
        (backwards, "answers a sample differently when the batch is in another order"),
        (alone, "answers a sample differently alone and in a batch"),
        (parts, "answers a sample differently in a smaller batch"),
        (later, "gives another answer to the same inputs later"),
        (logits if voted is None else voted, "answers a sample differently now and in the batch that was counted"),
    ):
        difference, allowed = _difference(other, logits, tolerance)
        if difference > allowed:
            most, found = apart(allowed, difference, 1 - math.floor(math.log10(difference)))
            raise ClassifierError(
                f"{who} {fault} (logits differ by {found}, kernels by {most} at most); it must be a "
                "fixed function of each sample: no dropout, no statistics over the batch, nothing kept between calls"
            )
    return logits


class FirstBatch(nn.Module):
    """Wraps a classifier while it votes and keeps a few samples of its first batch, to check them later."""

    def __init__(self, module: nn.Module, plain: nn.Module) -> None:
        """`module` votes; `plain` is the same classifier before it was compiled."""
        super().__init__()
        self._module = module
        self._plain = plain
        self._kept: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The classifier's logits, unchanged."""
        if self._kept is not None:
            return self._module(x)  # type: ignore[no-any-return]
        picked = torch.linspace(0, len(x) - 1, min(_SAMPLES, len(x)), dtype=torch.float64, device=x.device).long()
        samples = x[picked]
        logits: Tensor = self._module(x)
        self._kept = samples, logits[picked]
        return logits

    def check(self, num_classes: int, sub_image: int, tolerance: float) -> None:
        """Compare the counted logits of the kept samples, if there are two or more, with those of `plain`.

        Raises:
            ClassifierError: as `check_samples`.
        """
        if self._kept is not None and len(self._kept[0]) > 1:
            samples, voted = self._kept
            check_samples(self._plain, samples, num_classes, sub_image, tolerance, voted)


def same_probe(first: Sequence[float], second: Sequence[float], tolerance: float = 2.0**-10) -> bool:
    """Whether two copies of a classifier gave the same answers, up to differences between kernels of machines.

    Args:
        first: probe of `check_classifier`, as in run.json. Runs of earlier versions have the largest logits only.
        second: probe of the other copy.
        tolerance: share of the logits' spread by which they may differ.
    """
    ours, theirs = (torch.tensor(probe, dtype=torch.float64, device="cpu") for probe in (first, second))
    if _SAMPLES in (len(ours), len(theirs)):
        ours, theirs = ours[:_SAMPLES], theirs[:_SAMPLES]
        return len(ours) == len(theirs) and _close(ours, theirs, tolerance * _size(ours, theirs))
    if len(ours) != len(theirs):
        return False
    (top, winner, gap, *logits), (their_top, their_winner, their_gap, *their_logits) = (
        probe.reshape(-1, _SAMPLES) for probe in (ours, theirs)
    )
    values, their_values = torch.stack(logits), torch.stack(their_logits)
    allowed = tolerance * float(torch.maximum(values.abs().mean(), their_values.abs().mean())) + 1e-6
    clear = torch.minimum(gap, their_gap) > allowed
    return (
        _close(top, their_top, allowed + tolerance * _size(top, their_top))
        and not bool((clear & (winner != their_winner)).any())
        and _close(values, their_values, allowed)
    )


def _probe(logits: Tensor) -> tuple[float, ...]:
    """Eight numbers each: the largest logits, their classes, the leading gaps, then centred logits class by class.

    For many classes, to keep run.json small, the centred logits are replaced by their sums with fixed random signs,
    divided by sqrt(num_classes), which change too if two classes change places.
    """
    logits = logits.cpu()
    centred = _centred(logits)
    classes = logits.shape[1]
    gap = -centred.topk(min(2, classes), dim=1).values[:, -1]
    if classes > _ALL_LOGITS:
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (classes, _DIRECTIONS), generator=generator, device="cpu") * 2 - 1
        centred = centred @ signs.to(torch.float64) / classes**0.5
    rows = torch.cat([torch.stack([logits.amax(dim=1), logits.argmax(dim=1).to(torch.float64), gap]), centred.T])
    return tuple(float(f"{value:.6g}") for value in rows.flatten().tolist())


def _centred(logits: Tensor) -> Tensor:
    """Each sample's logits minus its largest, cut at `_LOWEST`, which also replaces -inf."""
    logits = logits.to(torch.float64)
    return (logits - logits.amax(dim=1, keepdim=True)).clamp_min(_LOWEST)


def _difference(first: Tensor, second: Tensor, tolerance: float) -> tuple[float, float]:
    """The largest difference of the centred logits, and the allowed one.

    They may differ by the tolerance times their spread: the mean distance of classes that are not cut from the leading
    one, over classes and samples. Rounding by a large offset of all logits is allowed too, up to 1/16 of the spread.
    """
    centred, others = _centred(first), _centred(second)
    rivals = others[(others < 0) & (others > _LOWEST)]
    spread = float(-rivals.mean()) if len(rivals) else -_LOWEST
    lost = 8 * _FLOAT32_EPS * float(second.amax(dim=1).abs().max())
    return float((centred - others).abs().max()), tolerance * spread + min(lost, spread / 16)


def _close(first: Tensor, second: Tensor, allowed: float) -> bool:
    return bool(((first - second).abs() <= allowed).all())


def _size(first: Tensor, second: Tensor) -> float:
    return float(torch.maximum(first.abs().max(), second.abs().max()))


def _random_states(device: torch.device) -> dict[str, object]:
    """The states of the global random generators."""
    python, (_, keys, *position) = random.getstate(), np.random.get_state(legacy=True)  # noqa: NPY002
    states: dict[str, object] = {"torch": torch.get_rng_state().numpy().tobytes()}
    if device.type == "cuda":
        states["torch on CUDA"] = torch.cuda.get_rng_state(device).numpy().tobytes()
    return states | {"numpy": (np.asarray(keys).tobytes(), *position), "Python's random": python}


def _who(sub_image: int) -> str:
    return f"sub-image {sub_image}: the classifier"


def _answer(module: nn.Module, inputs: Tensor, num_classes: int, who: str) -> Tensor:
    """Checked logits, float64 [N, num_classes] in new memory, of a copy of the inputs in the memory format of votes."""
    expected = [len(inputs), num_classes]
    samples = inputs.clone(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            logits: object = module(samples)
    except Exception as error:  # the user's module may raise anything
        raise ClassifierError(
            f"{who} failed on an input of shape {list(inputs.shape)} ({brief(error)}); "
            "it must accept float32 [N, C, h, w] of the sub-image as laid out"
        ) from error
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = f"a tensor of {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ClassifierError(f"{who} must return float logits of shape {expected}, got {got}")
    if list(logits.shape) != expected:
        raise ClassifierError(
            f"{who} must return logits of shape {expected} for inputs {list(inputs.shape)} "
            f"({counted(num_classes, 'class')}), got {list(logits.shape)}"
        )
    largest = logits.amax(dim=1)  # NaN if a logit is NaN
    if not bool(torch.isfinite(largest).all()):
        what = "only -inf for a sample" if bool((largest == -torch.inf).any()) else "NaN or infinite logits"
        raise ClassifierError(
            f"{who} returns {what}; check its checkpoint (diverged training?), and if it masks classes with -inf, that "
            "each sample keeps a finite logit"
        )
    return logits.to(torch.float64, copy=True)
