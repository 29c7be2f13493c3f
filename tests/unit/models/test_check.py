"""The trial of a base classifier: every way to be no function of one sample is refused, with its cause."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drs_ray.errors import ClassifierError
from drs_ray.models import check
from drs_ray.models.check import FirstBatch, check_classifier, check_samples, same_probe, tolerance_of

SHAPE = (1, 4, 6)
Function = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """Ten logits of a fixed linear map, changed by a function; `state` is a buffer for those that want one."""

    def __init__(self, change: Callable[[Net, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn((24, 10), generator=torch.Generator().manual_seed(1)))
        self.register_buffer("state", torch.zeros(()))
        self.change, self.calls, self.cache = change, 0, dict[object, Tensor]()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.change(self, x, x.flatten(1) @ self.weight)


def masked(logits: Tensor) -> Tensor:
    return torch.cat([logits[:, :-1], torch.full_like(logits[:, :1], -1e4)], dim=1)


def counted(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    net.state += 1
    return logits


def moved(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    net.average = 0.9 * getattr(net, "average", logits.mean(dim=0)) + 0.1 * logits.mean(dim=0)
    return logits - net.average


def numbered(logits: Tensor) -> Tensor:
    return torch.arange(len(logits), dtype=logits.dtype)[:, None] * torch.arange(10)


def drawn_by_python(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    return logits * (1 + random.random())


def drawn_by_numpy(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    return logits + torch.from_numpy(np.random.standard_normal(logits.shape)).float()  # noqa: NPY002


BATCH = "alone and in a batch|in another order|in a smaller batch"
NOT_FUNCTIONS: dict[str, tuple[Callable[[Net, Tensor, Tensor], Tensor], str]] = {
    "batch mean, a masked class": (lambda net, x, y: masked(y - y.mean(dim=0)), BATCH),
    "batch mean, an offset": (lambda net, x, y: y - y.mean(dim=0) + 3000, BATCH),
    "batch mean, a huge offset": (lambda net, x, y: y - y.mean(dim=0) + 3e6, BATCH),
    "dropout, a masked class": (lambda net, x, y: masked(nn.functional.dropout(y)), r"random numbers \(torch\)"),
    "dropout, an offset": (lambda net, x, y: nn.functional.dropout(y) + 3000, r"random numbers \(torch\)"),
    "stochastic denoiser": (lambda net, x, y: y + torch.randn_like(y) * 1e-6, r"random numbers \(torch\)"),
    "numpy": (drawn_by_numpy, r"random numbers \(numpy\)"),
    "python": (drawn_by_python, r"random numbers \(Python's random\)"),
    "own generator": (lambda net, x, y: y + torch.randn(y.shape, generator=net.generator), "the second time"),
    "buffer": (counted, r"changes its own tensors when it is called \(state\)"),
    "moving average": (moved, BATCH),
    "counter": (lambda net, x, y: y.roll(int(net.calls > 12), 1), "inputs later|smaller batch"),
    "cache by shape": (lambda net, x, y: net.cache.setdefault(x.shape, y.clone()), "in another order"),
    "attention over the batch": (lambda net, x, y: (y @ y.T).softmax(dim=1) @ y, BATCH),
    "batch maximum": (lambda net, x, y: (y / y.abs().max()).sign() * (y / y.abs().max()) ** 2, BATCH),
    "position": (lambda net, x, y: y + numbered(y), "in another order"),
    "parity of the batch size": (lambda net, x, y: y.roll(len(y) % 2, 1), "alone and in a batch"),
    "batches of three": (lambda net, x, y: y.roll(int(len(y) == 3), 1), "in a smaller batch"),
    "last sample": (lambda net, x, y: y + y[-1], "in another order"),
}


def test_a_difference_is_shown_above_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two digits both would be 0.001."""
    monkeypatch.setattr(check, "_difference", lambda *_: (0.0010201, 0.0010101))
    with pytest.raises(ClassifierError, match=r"logits differ by 0\.001020, kernels by 0\.001011 at most") as caught:
        check_classifier(Net(lambda net, x, y: y).eval(), SHAPE, 10, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NOT_FUNCTIONS)
def test_what_is_no_function_of_one_sample_is_refused_with_its_cause(name: str) -> None:
    change, cause = NOT_FUNCTIONS[name]
    with pytest.raises(ClassifierError, match=rf"sub-image 3: the classifier .*({cause})") as caught:
        check_classifier(Net(change).eval(), SHAPE, 10, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda net, x, y: y,
        lambda net, x, y: masked(y),
        lambda net, x, y: y + 3000,
        lambda net, x, y: y * 1e-4,
        lambda net, x, y: y * 1e4,
        lambda net, x, y: y * 0,
        lambda net, x, y: torch.cat([y[:, :-1], torch.full_like(y[:, :1], -torch.inf)], dim=1),
        lambda net, x, y: x.sub_(0.5).div_(0.25).flatten(1)[:, :10],
    ],
)
def test_functions_of_one_sample_pass(change: Callable[[Net, Tensor, Tensor], Tensor]) -> None:
    check_classifier(Net(change).eval(), SHAPE, 10, 0)


def test_the_tolerance_is_the_precisions() -> None:
    def rounded(net: Net, x: Tensor, y: Tensor) -> Tensor:
        return y * (1 + 2**-9 * (len(y) % 2))  # as if other kernels did odd batches

    module = Net(rounded).eval()
    with pytest.raises(ClassifierError, match="alone and in a batch"):
        check_classifier(module, SHAPE, 10, 0)
    check_classifier(module, SHAPE, 10, 0, precision="bfloat16")
    batch_mean = Net(lambda net, x, y: masked(y - y.mean(dim=0))).eval()
    with pytest.raises(ClassifierError, match=BATCH):
        check_classifier(batch_mean, SHAPE, 10, 0, precision="bfloat16")


def test_a_sample_without_a_finite_logit_is_named() -> None:
    with pytest.raises(ClassifierError, match="returns only -inf for a sample"):
        check_classifier(Net(lambda net, x, y: y * 0 - torch.inf).eval(), SHAPE, 10, 0)


def test_a_large_batch_that_voted_otherwise_is_found() -> None:
    module = Net(lambda net, x, y: y - y.mean(dim=0) if len(y) >= 50 else y).eval()
    check_classifier(module, SHAPE, 10, 0)  # eight samples say nothing of fifty
    watched, x = FirstBatch(module, module), torch.rand((50, *SHAPE), generator=torch.Generator().manual_seed(2))
    assert torch.equal(watched(x), module(x))
    with pytest.raises(ClassifierError, match="differently now and in the batch that was counted"):
        watched.check(10, 0, tolerance_of("float32", "cpu"))
    plain = Net(lambda net, x, y: y).eval()
    honest = FirstBatch(plain, plain)
    honest(x)
    honest.check(10, 0, tolerance_of("float32", "cpu"))


def test_inputs_stay_as_they_are() -> None:
    x = torch.rand((4, *SHAPE))
    before = x.clone()
    check_samples(Net(lambda net, x, y: x.zero_().flatten(1)[:, :10]).eval(), x, 10, 0, 2**-13)
    assert torch.equal(x, before)


@pytest.mark.parametrize("classes", [10, 1000])
def test_a_probe_tells_changed_code(classes: int) -> None:
    weight = torch.randn((24, classes), generator=torch.Generator().manual_seed(5))
    swapped = list(range(classes))
    swapped[3], swapped[7] = 7, 3

    def probe(change: Function) -> tuple[float, ...]:
        return check_classifier(Net(lambda net, x, y: change(x.flatten(1) @ weight)).eval(), SHAPE, classes, 0)

    first = probe(lambda y: y)
    assert len(str(first)) < 6000
    assert same_probe(first, probe(lambda y: y + 1e-6))
    changes: list[Function] = [
        lambda y: y.roll(1, 1),
        lambda y: y[:, swapped],
        lambda y: -y,
        lambda y: y + 1,
        lambda y: y * 1.1,
    ]
    for change in changes:
        assert not same_probe(first, probe(change))
    assert same_probe(first, first[:8])  # as runs of earlier versions kept them
    assert not same_probe(probe(lambda y: y + 1)[:8], first)
