"""`SmoothedClassifier`: to the vote what a run of the batch system gives, and one clear line for what cannot be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import drs_ray
from drs_ray import Rule, SmoothedClassifier, certify, make_partition
from drs_ray.config import parse_config
from drs_ray.data.datasets import load_dataset
from drs_ray.errors import ClassifierError, ConfigError, DataError
from drs_ray.smoothing.partition import Partition
from tests.support.classifiers import Prototypes
from tests.support.runs import run_data

IMAGES = 6


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the workers of `run_data` have it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def digits(count: int = IMAGES) -> np.ndarray[Any, np.dtype[np.float32]]:
    return load_dataset("mnist5k").images(range(count))


def smoothed(
    name: str = "checkerboard", interleave: tuple[int, int] | None = None, sigmas: Any = None, **options: Any
) -> SmoothedClassifier:
    partition = make_partition(name, 28, 28, "packed", interleave)
    chosen = sigmas or [0.5] * len(partition)
    return SmoothedClassifier(partition, modules(partition), chosen, **{"num_classes": 10, "block": 100} | options)


def modules(partition: Partition, channels: int = 1) -> list[nn.Module]:
    return [Prototypes(partition.layout_shape(k, channels), 10) for k in range(len(partition))]


SAME: list[tuple[dict[str, Any], list[float], dict[str, Any]]] = [
    ({"name": "none"}, [0.3], {}),
    ({"name": "checkerboard"}, [0.5, 0.25], {}),
    ({"name": "checkerboard"}, [0.5, 0.5], {"noise": {"law": "gaussian", "seed": 3, "block": 100}}),
    ({"name": "interleave", "interleave": [2, 2]}, [0.25, 0.25, 0.25, 0.25], {"certificate": {"alpha": 0.05}}),
    (
        {"name": "checkerboard"},
        [0.5, 0.25],
        {"certificate": {"weights": [1.0, 2.0], "confidence": "bonferroni", "pooled": False}},
    ),
]


@pytest.mark.parametrize(("partition", "sigmas", "sections"), SAME, ids=lambda value: str(value)[:60])
def test_it_gives_exactly_the_certificates_of_a_run(
    tmp_path: Path, partition: dict[str, Any], sigmas: list[float], sections: dict[str, Any]
) -> None:
    data = run_data(tmp_path / "run") | {"partition": partition}
    data["dataset"]["images"] = {"ids": [5, 2, 9, 700]}
    data["classifiers"] = [data["classifiers"][0] | {"sigma": sigma} for sigma in sigmas]
    run = certify(parse_config(data | sections))
    config = run.record.config
    certificate = config.certificate
    rule = certificate.rule(config.sigmas)
    ids = list(run.record.image_ids)
    data_set = load_dataset("mnist5k")
    images = data_set.images(ids)
    options: dict[str, Any] = {"law": config.noise.law, "seed": config.noise.seed, "batch": config.engine.batch}
    options["dataset"] = data_set.digest
    for how in ({"rule": rule}, {}) if certificate.weights is None else ({"rule": rule},):
        ours = smoothed(partition["name"], config.partition.interleave, sigmas, **options, **how)
        found = ours.certify(torch.from_numpy(images), 400, certificate.alpha, 50, ids)
        expected = run.certificates.to_pydict()
        assert found.image_ids.tolist() == expected["image_id"]
        assert found.prediction.tolist() == expected["prediction"]
        assert found.radius.tolist() == expected["radius"]
        assert found.selected_class.tolist() == expected["selected_class"]
        for name in ("p_lower", "rival_upper", "margin"):
            assert getattr(found, name).tolist() == expected[name]
        at = np.arange(len(ids))
        assert found.estimation_votes[at, :, found.selected_class].tolist() == expected["class_votes"]
        assert list(found.rules) == expected["rule"]
        assert found.alpha == certificate.alpha
    assert (found.radius > 0).any()


def test_shapes_and_sums() -> None:
    found = smoothed().certify(digits(3), 200, selection=30)
    assert len(found) == 3
    assert found.selection_votes.shape == found.estimation_votes.shape == (3, 2, 10)
    assert (found.selection_votes.sum(axis=2) == 30).all()
    assert (found.estimation_votes.sum(axis=2) == 200).all()
    assert found.p_lower.shape == found.rival_upper.shape == found.margin.shape == (3, 2)
    assert ((found.prediction == -1) == (found.radius == 0)).all()
    assert found.image_ids.tolist() == [0, 1, 2]


def test_an_image_is_certified_alike_alone_and_among_others() -> None:
    ours, images = smoothed(), digits(4)
    together = ours.certify(images, 150)
    alone = ours.certify(images[2], 150, image_ids=[2])
    assert (alone.estimation_votes[0] == together.estimation_votes[2]).all()
    assert alone.radius.tolist() == [together.radius[2]]
    other_noise = ours.certify(images[2], 150, image_ids=[3])
    assert (other_noise.estimation_votes != alone.estimation_votes).any()
    for other in (smoothed(seed=1), smoothed(dataset="train")):
        assert (other.certify(images[2], 150, image_ids=[2]).estimation_votes != alone.estimation_votes).any()


def test_predict_of_one_sub_image_is_the_test_of_its_votes() -> None:
    ours, images = smoothed("none"), digits(20)
    votes = ours.certify(images, 60, selection=1).estimation_votes[:, 0]
    found = ours.predict(images, 60, 0.05)
    assert found.dtype == np.int64
    assert set(found.tolist()) - {-1} != set()
    assert (found == -1).any()
    assert all(answer in (-1, np.argmax(row)) for answer, row in zip(found, votes, strict=True))


@pytest.mark.parametrize("name", ["checkerboard", "interleave"])
def test_predict_of_more_is_a_certificate_of_a_radius_above_zero(name: str) -> None:
    ours, images = smoothed(name, (2, 2) if name == "interleave" else None), digits(12)
    found = ours.predict(images, 300, 0.01)
    assert found.tolist() == ours.certify(images, 200, 0.01, 100).prediction.tolist()
    with pytest.warns(UserWarning, match="with 1 estimation samples of each sub-image every image abstains"):
        few = ours.predict(images, 2, 0.01)
    assert few.tolist() == [-1] * 12  # two samples say nothing
    assert (found >= 0).any()


def test_more_samples_cost_abstentions() -> None:
    ours, images = smoothed("none"), digits(12)
    with pytest.warns(UserWarning, match="with 5 samples"):
        assert (ours.predict(images, 5) == -1).all()
    assert (ours.predict(images, 2000) == -1).sum() < 12


class Moody(nn.Module):
    """Votes for class 1 while it trains."""

    def forward(self, x: Tensor) -> Tensor:
        logits = x.new_zeros((len(x), 2))
        logits[:, int(self.training)] = 1
        return logits


def test_classifiers_vote_in_eval_mode_and_stay_as_they_are() -> None:
    module = Moody()
    ours = SmoothedClassifier(make_partition("none", 4, 4, "packed"), [module], [1.0], num_classes=2)
    for _ in range(2):
        module.train()
        assert ours.certify(torch.zeros(1, 4, 4), 50).estimation_votes.tolist() == [[[50, 0]]]
        assert module.training
        module.train()
        assert ours.predict(torch.zeros(1, 4, 4), 50).tolist() == [0]


def test_colour_images_gradients_and_read_only_arrays() -> None:
    partition = make_partition("checkerboard", 8, 8, "packed")
    ours = SmoothedClassifier(partition, modules(partition, 3), [0.5, 0.5], num_classes=10, batch=7)
    x = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(1)) / 255.0
    array = x.numpy().copy()
    array.setflags(write=False)
    first, second = ours.certify(array, 40), ours.certify(x.requires_grad_(), 40)
    assert (first.estimation_votes == second.estimation_votes).all()
    backwards = ours.certify(array[::-1], 40, image_ids=[1, 0])
    assert (backwards.estimation_votes[::-1] == first.estimation_votes).all()


def test_the_default_rule_is_the_configs() -> None:
    assert smoothed("none").rule() == Rule("probit", "bonferroni", None, True, False)
    assert smoothed().rule() == Rule("probit", "staircase", None, True, True)
    assert len(smoothed().certify(digits(1), 20, 0.6)) == 1
    assert smoothed(sigmas=[0.5, 0.25]).rule().pooled is False
    assert smoothed(weights=[1, 2]).rule() == Rule("probit", "staircase", (1.0, 2.0), True, False)
    assert smoothed("interleave", (2, 2)).rule() == Rule("probit", "staircase", None, True, True)
    assert smoothed(rule=Rule("mean")).rule() == Rule("mean")


WRONG_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"sigmas": [0.5]}, "sigmas must have one entry per sub-image, 2, got 1"),
    ({"sigmas": [0.5, 0.0]}, "sigmas must be in [0.001, 100], in pixel units, got [0.5, 0.0]"),
    ({"sigmas": [0.5, float("nan")]}, "sigmas must be in [0.001, 100]"),
    ({"sigmas": [0.5, "loud"]}, "sigmas must be in [0.001, 100]"),
    ({"num_classes": 1}, "num_classes must be a whole number >= 2, got 1"),
    ({"block": 0}, "block must be a whole number >= 1, got 0"),
    ({"batch": 0}, "batch must be a whole number >= 1, got 0"),
    ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
    ({"law": "uniform"}, "law must be lattice or gaussian, got 'uniform'"),
    ({"device": "tpu0"}, "device must be cpu or cuda, got 'tpu0'"),
    ({"device": "mps"}, "device must be cpu, or cuda where there is a GPU, got 'mps'"),
    ({"weights": [1.0]}, "weights must have one entry per sub-image, of which there are 2, got 1"),
    ({"weights": [1.0, -1.0]}, "weights must be 2 positive numbers"),
    ({"weights": [1.0, 2.0], "rule": Rule()}, "give rule=Rule(weights=...) or weights, not both"),
    ({"name": "none", "rule": Rule(pooled=True)}, "the pooled rule needs two or more sub-images with equal sigmas"),
    ({"rule": Rule(confidence="maybe")}, "confidence must be one of bonferroni, staircase, got 'maybe'"),
    ({"sigmas": [0.5, 0.25], "rule": Rule(pooled=True)}, "two or more sub-images with equal sigmas, got [0.5, 0.25]"),
    ({"name": "interleave", "interleave": (2, 2), "rule": Rule("mean")}, "the mean vote has no radius for K = 4 > 2"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_ARGUMENTS, ids=[w[1][:40] for w in WRONG_ARGUMENTS])
def test_arguments_that_cannot_be_get_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        smoothed(**arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


WRONG_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"n": 0}, ConfigError, "n must be a whole number >= 1, got 0"),
    ({"n": 1.5}, ConfigError, "n must be a whole number >= 1, got 1.5"),
    ({"n": True}, ConfigError, "n must be a whole number >= 1, got True"),
    ({"selection": 0}, ConfigError, "selection must be a whole number >= 1, got 0"),
    ({"alpha": 0}, ConfigError, "alpha must be in (0, 1), at least 1e-50, got 0"),
    ({"alpha": 1.0}, ConfigError, "alpha must be in (0, 1)"),
    ({"alpha": "low"}, ConfigError, "alpha must be in (0, 1), at least 1e-50, got 'low'"),
    ({"image_ids": [1]}, ConfigError, "image_ids must be 2 different ids, one per image, got 1: [1]"),
    ({"image_ids": [1, 1]}, ConfigError, "image_ids must be 2 different ids"),
    ({"image_ids": [1, -1]}, ConfigError, "image_ids must be a whole number >= 0, got -1"),
    ({"x": [[0.0]]}, DataError, "x must be a tensor or a numpy array, got list"),
    ({"x": digits(2).astype(np.float64)}, DataError, "x must be float32 in [0, 1], got float64"),
    ({"x": torch.zeros(1, 28, 28, dtype=torch.uint8)}, DataError, "got torch.uint8; 8-bit pixels are float32(x) / 255"),
    ({"x": digits(2)[:, 0, 0]}, DataError, "must be [N, C, 28, 28] or [C, 28, 28] and not empty, got [2, 28]"),
    ({"x": digits(2)[..., :27]}, DataError, "and not empty, got [2, 1, 28, 27]"),
    ({"x": digits(2)[:0]}, DataError, "and not empty, got [0, 1, 28, 28]"),
    ({"x": digits(2)[None]}, DataError, "and not empty, got [1, 2, 1, 28, 28]"),
    ({"x": digits(2) - 1}, DataError, "x must be in [0, 1], got -1 in image 0; normalise inside the classifier"),
    (
        {"x": digits(2) * 0 + np.nextafter(np.float32(1), np.float32(2))},
        DataError,
        "x must be in [0, 1], got 1.00000012",
    ),
    ({"x": digits(2) * np.float32(np.nan)}, DataError, "x must be in [0, 1], got nan in image 0"),
    (
        {"x": np.repeat(digits(2), 3, axis=1)},
        ClassifierError,
        "sub-image 0: the classifier failed on an input of shape",
    ),
]


@pytest.mark.parametrize(("changed", "kind", "message"), WRONG_CALLS, ids=[w[2][:50] for w in WRONG_CALLS])
def test_calls_that_cannot_be_get_one_line(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    call: dict[str, Any] = {"x": digits(2), "n": 20} | changed
    ours = smoothed()
    for method in (ours.certify, ours.predict):
        if method == ours.predict and "selection" in call:
            continue
        with pytest.raises(kind) as error:
            method(**call)
        assert "\n" not in str(error.value)
        if method == ours.certify or "n" not in changed:
            assert message in str(error.value)


def test_only_the_image_that_is_outside_is_named() -> None:
    images = digits(3).copy()
    images[2, 0, 5, 5] = 1.5
    with pytest.raises(DataError, match=r"got 1\.5 in image 2"):
        smoothed().predict(images, 10)


def test_classifiers_that_cannot_be_get_one_line() -> None:
    partition = make_partition("checkerboard", 28, 28, "packed")
    good = modules(partition)
    with pytest.raises(ConfigError, match="classifiers must have one entry per sub-image, 2, got 1"):
        SmoothedClassifier(partition, good[:1], [0.5, 0.5], num_classes=10)
    with pytest.raises(ClassifierError, match=r"classifiers\[1\] must be a torch\.nn\.Module, got function"):
        SmoothedClassifier(partition, [good[0], lambda x: x], [0.5, 0.5], num_classes=10)  # type: ignore[list-item]
    with pytest.raises(ClassifierError, match=r"sub-image 0: the classifier must return logits of shape \[\d+, 7\]"):
        SmoothedClassifier(partition, good, [0.5, 0.5], num_classes=7).predict(digits(1), 20)


def test_pixels_that_are_no_multiples_of_1_255_need_gaussian_noise() -> None:
    x = np.full((1, 28, 28), 0.3001, np.float32)
    with pytest.raises(DataError, match="needs pixels that are multiples of 1/255") as error:
        smoothed().predict(x, 20)
    assert 'SmoothedClassifier: law="gaussian"' in str(error.value)
    assert smoothed(law="gaussian").certify(x, 10).estimation_votes.sum() == 20


def test_it_needs_no_ray() -> None:
    script = (
        "import sys, drs_ray; assert not {'torch', 'scipy', 'ray'} & set(sys.modules)\n"
        "import torch; from drs_ray import *\n"
        "c = SmoothedClassifier(make_partition('none', 2, 2, 'packed'), [torch.nn.Flatten()], [1.0], num_classes=4)\n"
        "print(c.predict(torch.eye(2)[None], 10), 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[-1] False"), done.stderr


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'drs_ray' has no attribute 'certfy'"):
        drs_ray.certfy  # noqa: B018
    assert all(getattr(drs_ray, name) is not None for name in drs_ray.__all__)


def test_other_images_with_the_same_noise_are_told() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    ours = SmoothedClassifier(make_partition("none", 4, 4, "packed"), [module], [1.0], num_classes=2)
    ours.certify(torch.zeros(2, 1, 4, 4), 50)
    ours.certify(torch.zeros(1, 1, 4, 4), 100)  # the same image again
    ours.certify(torch.ones(1, 1, 4, 4), 50, image_ids=[2])
    with pytest.warns(UserWarning, match=r"share their noise with other images .*image_ids=\[\.\.\.\]") as told:
        ours.certify(torch.ones(1, 1, 4, 4), 50)
    assert told[0].filename == __file__


def test_a_first_batch_that_voted_otherwise_is_refused() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :2]
            return logits - logits.mean(dim=0) if len(x) == 50 else logits

    ours = SmoothedClassifier(make_partition("none", 4, 4, "packed"), [Centred()], [1.0], num_classes=2, batch=50)
    with pytest.raises(ClassifierError, match="sub-image 0: the classifier answers a sample differently"):
        ours.certify(torch.zeros(1, 1, 4, 4), 100)


def test_a_certificate_that_nobody_can_get_is_told_of() -> None:
    ours = smoothed("none", rule=Rule())
    with pytest.warns(UserWarning, match=r"with 9 estimation samples .* alpha 0\.001; use 10 at least") as told:
        assert (ours.certify(digits(1), 9).prediction == -1).all()
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match=r"with 10 samples .* alpha 0\.001; use 11 at least") as told:
        assert (ours.predict(digits(1), 10) == -1).all()
    assert told[0].filename == __file__
    ours.certify(digits(1), 10)
    ours.predict(digits(1), 11)
    with pytest.warns(UserWarning, match=r"sigmas: 64 is in pixel units, .* give 64/255 = 0\.251") as told:
        smoothed(sigmas=[64, 64])
    assert told[0].filename.endswith("test_smoothed.py")
