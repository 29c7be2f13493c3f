"""What a notebook or a factory has set in torch changes no vote and no weight, and is as it was afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import drs_ray
from drs_ray.config import parse_config
from drs_ray.data import datasets
from drs_ray.data.arrays import ArrayDataset
from drs_ray.data.datasets import load_dataset, load_mnist5k
from drs_ray.engine.forecast import plan_run
from drs_ray.models.building import build_module
from drs_ray.models.torch_state import fixed_kernels, plain_torch
from tests.support.classifiers import convolutions
from tests.support.runs import counts_digest, run_config, run_data


@contextmanager
def _dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@contextmanager
def _device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    yield
    torch.set_default_device(None)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": _dtype,
    "a default device": lambda: _device("meta"),
    "a default device that is not here": lambda: _device("cuda:7"),
    "in a device's context": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "without gradients": torch.inference_mode,
}


def settings() -> tuple[object, ...]:
    devices = [mode.device for mode in torch.overrides._get_current_function_mode_stack()]
    grad = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    return (torch.get_default_dtype(), devices, torch.is_autocast_enabled("cpu"), *grad)


@pytest.fixture(params=sorted(STATES))
def state(request: pytest.FixtureRequest) -> Iterator[Callable[[], AbstractContextManager[Any]]]:
    """A setting; whatever a test does in it, it is there at the end, and is not left behind."""
    before = settings()
    made = STATES[request.param]

    @contextmanager
    def kept() -> Iterator[None]:
        with made():
            there = settings()
            assert there != before
            yield
            assert settings() == there

    yield kept
    assert settings() == before


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished") / "run"
    drs_ray.certify(run_config(place, images=3, factory="convolutions"))
    return place


def test_nested_settings_come_back_in_their_order() -> None:
    torch.set_default_device("meta")
    try:
        with torch.device("cuda:7"):
            before = settings()
            with plain_torch(), plain_torch():
                assert torch.zeros(1).device.type == "cpu"
            assert settings() == before
        assert torch.zeros(1).device.type == "meta"
    finally:
        torch.set_default_device(None)
    assert torch.zeros(1).device.type == "cpu"


def test_a_smoothed_classifier_votes_the_same(state: Callable[[], AbstractContextManager[Any]]) -> None:
    partition = drs_ray.make_partition("checkerboard", 28, 28, "packed")
    modules = [convolutions(partition.layout_shape(k, 1), 10) for k in range(2)]
    images = load_dataset("mnist5k").images(range(2))

    def answers() -> list[np.ndarray[Any, Any]]:
        ours = drs_ray.SmoothedClassifier(partition, modules, [0.5, 0.5], num_classes=10, block=100)
        found = ours.certify(images, 100, image_ids=[4, 5])
        return [found.selection_votes, found.estimation_votes, found.radius, ours.predict(torch.from_numpy(images), 60)]

    expected = answers()
    with state():
        found = answers()
    assert [values.tolist() for values in found] == [values.tolist() for values in expected]


def test_a_run_has_the_same_counts_and_passes_verify(
    tmp_path: Path, finished: Path, state: Callable[[], AbstractContextManager[Any]]
) -> None:
    config = run_config(tmp_path / "run", images=3, factory="convolutions")
    with state():
        drs_ray.certify(config)
        drs_ray.verify(finished, 2).check()
    assert counts_digest(tmp_path / "run") == counts_digest(finished)


def test_a_plan_and_an_attack_can_be_made(finished: Path, state: Callable[[], AbstractContextManager[Any]]) -> None:
    quick: dict[str, Any] = {"steps": 3, "samples": 4, "confirmation": 300, "seed": 1}
    expected = drs_ray.attack(finished, 3, **quick).table
    with state():
        assert drs_ray.attack(finished, 3, **quick).table.equals(expected)
        plan_run(run_config("unused", images=3, factory="convolutions"))


def test_training_learns_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Callable[[], AbstractContextManager[Any]]
) -> None:
    full = load_mnist5k("train")
    few = ArrayDataset(full.name, "train", 10, full.pixels[::100], full.targets[::100])
    monkeypatch.setattr(datasets, "load_mnist5k", lambda split: few)

    def trained(name: str) -> bytes:
        data = run_data(tmp_path / "run") | {"partition": {"name": "none"}}
        file = tmp_path / f"{name}.safetensors"
        cnn = {"architecture": "digits-cnn", "arguments": {"width": 4}, "sigma": 0.5, "checkpoint": str(file)}
        drs_ray.train(parse_config(data | {"classifiers": [cnn], "training": {"epochs": 1, "batch": 16}}))
        return file.read_bytes()

    expected = trained("plain")
    with state():
        found = trained("other")
    assert found == expected


@pytest.mark.parametrize("late", [False, True])
def test_a_factory_that_changes_the_defaults_changes_no_vote(tmp_path: Path, late: bool) -> None:
    before = settings()
    for place, factory in (("one", "prototypes"), ("two", "sets_defaults")):
        arguments = {"late": late} if factory == "sets_defaults" else {}
        drs_ray.certify(run_config(tmp_path / place, images=3, factory=factory, **arguments))
        assert settings() == before
    assert counts_digest(tmp_path / "one") == counts_digest(tmp_path / "two")


def test_a_worker_is_as_it_was_when_a_factory_has_been_called() -> None:
    before = settings()
    build_module("tests.support.classifiers:sets_defaults", {}, (1, 28, 14), 10)
    assert settings() == before


@pytest.mark.parametrize("allow_tf32", [True, False])
def test_other_settings_of_cudnn_come_back(allow_tf32: bool) -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = True, False
    cudnn.allow_tf32 = allow_tf32
    precision = cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    try:
        with fixed_kernels("cuda"):
            assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
            assert cudnn.conv.fp32_precision == "ieee"  # type: ignore[attr-defined]
            assert not cudnn.allow_tf32  # it raises where it does not agree
            with cudnn.flags(enabled=False):  # type: ignore[no-untyped-call]
                assert not cudnn.enabled
        assert cudnn.allow_tf32 is allow_tf32
        assert cudnn.conv.fp32_precision == precision  # type: ignore[attr-defined]
        assert (cudnn.benchmark, cudnn.deterministic) == (True, False)
    finally:
        cudnn.benchmark, cudnn.deterministic = before
        cudnn.allow_tf32 = True


def test_threads_are_those_of_a_worker_for_a_while() -> None:
    before = torch.get_num_threads()
    with fixed_kernels("cpu", 2.5):
        assert torch.get_num_threads() == 2
        with fixed_kernels("cpu", 0.5):
            assert torch.get_num_threads() == 1
        with fixed_kernels("cpu"):
            assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
