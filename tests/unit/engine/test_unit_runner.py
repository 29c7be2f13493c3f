"""What is read of an image folder: headers of the run's images first, then a unit's images, and nothing else."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from drs_ray import certify
from drs_ray.config import EngineConfig, parse_config
from drs_ray.counts.plan import plan_units
from drs_ray.counts.run_record import RunRecord, read_record
from drs_ray.data import folders
from drs_ray.engine import unit_runner
from drs_ray.engine.description import describe_run, resolve
from drs_ray.engine.observer import Observer
from drs_ray.engine.opening import open_executor
from drs_ray.engine.unit_runner import UnitRunner, device_errors
from drs_ray.errors import ClassifierError, DeviceLostError, InterruptedRunError
from drs_ray.models.inference import VotingClassifier
from drs_ray.storage import LocalStore
from tests.support.runs import BATCH, run_config, run_data
from tests.unit.counts.factories import MemoryStore

IMAGES = 24
SPLIT = {"folder": "test", "imagenet": "val"}


def made(root: Path, name: str, size: int) -> Path:
    """So many random images in two classes."""
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        file = root / SPLIT[name] / f"class{number * 2 // IMAGES}" / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (size, size, 3), np.uint8)).save(file)
    return root / SPLIT[name]


def described(root: Path, name: str, images_per_unit: int, **dataset: Any) -> RunRecord:
    data = run_data("never-written", images=IMAGES)
    data["dataset"] |= {"name": name, "root": str(root), "split": SPLIT[name], **dataset}
    data["budget"] = {"selection": 5, "estimation": 10}
    data["noise"] = {"block": 10}
    data["engine"] |= {"images_per_unit": images_per_unit, "batch": 5}
    with open_executor(EngineConfig(address="inline")) as executor:
        return describe_run(resolve(parse_config(data), executor), Observer())


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the image files whose headers were read, or that were read as a whole, in order."""
    names: list[str] = []

    def noted(reading: Callable[[Any], Any], path_of: Callable[[Any], Path]) -> Callable[[Any], Any]:
        def note(file: Any) -> Any:
            if path_of(file).suffix == ".png":
                names.append(path_of(file).name)
            return reading(file)

        return note

    monkeypatch.setattr(Path, "read_bytes", noted(Path.read_bytes, Path))
    monkeypatch.setattr(folders, "header", noted(folders.header, lambda opened: Path(opened.name)))
    return names


@pytest.mark.parametrize(("name", "dataset"), [("folder", {}), ("imagenet", {"image_size": 28})])
def test_only_the_images_of_the_unit_are_opened(
    tmp_path: Path, opened: list[str], name: str, dataset: dict[str, int]
) -> None:
    split = made(tmp_path, name, 32)
    record = described(tmp_path, name, 3, **dataset)
    size_of_all = ["000.png"] if name == "folder" else []  # a folder's images have the size of its first one
    assert sorted(opened) == sorted([*size_of_all, *(f"{image_id:03}.png" for image_id in range(IMAGES))])
    unit = plan_units(record)[8]
    mine = [f"{position:03}.png" for position in unit.positions]
    assert len(mine) == 3
    for file in split.rglob("*.png"):
        if file.name not in {*mine, *size_of_all}:
            file.write_bytes(b"\0" * file.stat().st_size)  # the digest covers sizes: what is broken is not looked at
    opened.clear()
    runner = UnitRunner(record, unit.sub_image)
    assert opened == size_of_all
    opened.clear()
    store = MemoryStore()
    runner.run(unit, store)
    assert opened == mine
    assert list(store.objects) == [unit.key]


def test_a_unit_of_many_images_holds_one_at_a_time(tmp_path: Path) -> None:
    made(tmp_path, "imagenet", 224)
    record = described(tmp_path, "imagenet", IMAGES)
    (unit, *_) = plan_units(record)
    assert len(unit.positions) == IMAGES
    runner = UnitRunner(record, unit.sub_image)
    runner.run(unit, MemoryStore())  # what is imported on first use is not counted
    tracemalloc.start()  # numpy's memory, not torch's
    try:
        runner.run(unit, MemoryStore())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    one = 3 * 224 * 224 * 4
    assert one < peak < 5 * one  # its bytes, its floats, and what arithmetic makes of them


class _Centred(nn.Module):
    """Statistics over the batch, but only in whole batches of the run."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self._network(x)
        return logits - logits.mean(dim=0) if len(x) == 5 else logits


def test_a_sample_of_the_first_batch_that_voted_otherwise_alone_fails_every_unit(tmp_path: Path) -> None:
    made(tmp_path, "folder", 8)
    record = described(tmp_path, "folder", 2)
    unit = plan_units(record)[0]
    runner = UnitRunner(record, unit.sub_image)
    assert list(runner.count(unit))
    runner = UnitRunner(record, unit.sub_image)
    centred = _Centred(runner.classifier.module).eval()
    runner.classifier = VotingClassifier(centred, centred)
    for _ in range(2):
        with pytest.raises(ClassifierError, match="sub-image 0: the classifier answers a sample differently"):
            list(runner.count(unit))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Make this process one with a GPU that works, or no longer does."""

    def set_to(works: bool) -> None:
        def synchronize() -> None:
            if not works:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)

    return set_to


MEMORY = torch.OutOfMemoryError("tried to allocate 20 GiB")


def test_errors_of_a_gpu_are_told_apart(gpu: Callable[[bool], None]) -> None:
    wrapped = ClassifierError("the classifier failed")
    wrapped.__cause__ = MEMORY
    for error in (RuntimeError("illegal access"), ClassifierError("the classifier failed"), MEMORY):
        gpu(False)
        with (
            pytest.raises(DeviceLostError, match=r"no longer works in this process \(.*; look at the GPU"),
            device_errors(),
        ):
            raise error
    gpu(True)
    for error in (MEMORY, wrapped):
        with (
            pytest.raises(ClassifierError, match=r"memory ran out \(OutOfMemoryError: tried .*; lower engine"),
            device_errors(),
        ):
            raise error
    for other in (RuntimeError("a bug"), ClassifierError("NaN"), InterruptedRunError("SIGTERM", 15)):
        with pytest.raises(type(other)) as caught, device_errors():
            raise other
        assert caught.value is other


def test_a_runner_whose_gpu_is_lost_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", torch.cuda.is_initialized)  # restored after `lose_device`
    monkeypatch.setattr(torch.cuda, "synchronize", torch.cuda.synchronize)
    marker = tmp_path / "lose-once"
    marker.touch()
    config = run_config(tmp_path / "run", images=3, factory="loses_device", trigger=BATCH, marker=str(marker))
    with pytest.raises(DeviceLostError, match=r"the GPU no longer works .*illegal memory access"):
        certify(config)
    assert not marker.exists()
    record = read_record(LocalStore(tmp_path / "run"))
    runner = UnitRunner(record, 0)  # loads with smaller batches
    with pytest.raises(DeviceLostError):
        runner.measure(plan_units(record)[0], 0.0)

    def fails(record: RunRecord) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(unit_runner, "_dataset_of", fails)
    with pytest.raises(DeviceLostError):
        UnitRunner(record, 0)
