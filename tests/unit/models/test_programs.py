"""Programs of torch.export: same answers, code in the digest, fixed mode, and files that must be refused."""

from __future__ import annotations

import copy
import io
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drs_ray.config import PixelsConfig
from drs_ray.errors import ClassifierError
from drs_ray.models.factory import load_classifier

GIVEN: dict[str, Any] = {
    "architecture": "torch.export",
    "arguments": {},
    "sub_image": 0,
    "partition": "none",
    "layout": "packed",
    "sigma": 0.25,
    "image_shape": (1, 8, 8),
    "num_classes": 5,
}


class Network(nn.Module):
    def __init__(self, gain: float = 1.0, normed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(64, 5)
        self.norm: nn.Module = nn.BatchNorm1d(5) if normed else nn.Identity()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.gain * self.linear(x.flatten(1)).relu())


def export(file: Path, network: nn.Module) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, at the user's desk
        program = torch.export.export(
            network, (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        torch.export.save(program, file)
    return str(file)


def test_a_program_answers_as_its_module(tmp_path: Path) -> None:
    network = Network(normed=True).eval()
    file = export(tmp_path / "model.pt2", network)
    loaded = load_classifier(**GIVEN, checkpoint=file)
    x = torch.rand(7, 1, 8, 8)
    with torch.inference_mode():
        assert torch.equal(loaded.module(x), network(x))
        scaled = load_classifier(**GIVEN, checkpoint=file, pixels=PixelsConfig(range=(0, 255)))
        assert torch.allclose(scaled.module(x), network(255 * x))
    assert not any(part.training for part in loaded.module.eval().modules())
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


def test_the_code_is_part_of_the_digest(tmp_path: Path) -> None:
    """The same weights in another computation are another classifier."""
    first, again, other = (
        load_classifier(**GIVEN, checkpoint=export(tmp_path / f"{n}.pt2", Network(gain).eval()))
        for n, gain in enumerate((1.0, 1.0, 2.0))
    )
    assert other.digest != first.digest
    assert again.probe == first.probe
    same = load_classifier(**GIVEN, checkpoint=str(tmp_path / "0.pt2"))
    assert same.digest == first.digest


def test_one_exported_in_train_mode_is_refused(tmp_path: Path) -> None:
    file = export(tmp_path / "model.pt2", Network(normed=True).train())
    with pytest.raises(ClassifierError, match=r"fixed function of each sample|failed on an input"):
        load_classifier(**GIVEN, checkpoint=file)


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_code_pickled_into_a_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.export would fall back to a full unpickling; also that leaves the environment as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    load = torch.load

    def with_evil(*given: Any, **options: Any) -> Any:
        data = io.BytesIO()
        torch.save({"code": _Code()}, data)
        data.seek(0)
        return load(data, **{**options, "weights_only": False})

    file = export(tmp_path / "model.pt2", Network().eval())
    monkeypatch.setattr(torch, "load", with_evil)
    with pytest.raises(ClassifierError, match=r"model.pt2: not a program that this torch .* can load"):
        load_classifier(**GIVEN, checkpoint=file)
    assert not (tmp_path / "ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_fixed_batch_or_other_classes_are_told(tmp_path: Path) -> None:
    file = tmp_path / "fixed.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(Network().eval(), (torch.rand(2, 1, 8, 8),)), file)
    with pytest.raises(ClassifierError, match=r"failed on an input of shape \[8, 1, 8, 8\]"):
        load_classifier(**GIVEN, checkpoint=str(file))
    file = Path(export(tmp_path / "model.pt2", Network().eval()))
    with pytest.raises(ClassifierError, match=r"logits of shape \[8, 10\] .*got \[8, 5\]"):
        load_classifier(**{**GIVEN, "num_classes": 10}, checkpoint=str(file))


def test_what_is_no_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.pt2").write_bytes(pickle.dumps(_Code()))
    torch.save({"w": torch.zeros(1)}, "weights.pt2")
    for name in ("plain.pt2", "weights.pt2"):
        with pytest.raises(ClassifierError, match=rf"{name}: not a program that this torch") as caught:
            load_classifier(**GIVEN, checkpoint=name)
        assert "\n" not in str(caught.value)
    assert not Path("ran").exists()
    Path("pointer.pt2").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ClassifierError, match=r"pointer.pt2: is a Git LFS pointer"):
        load_classifier(**GIVEN, checkpoint="pointer.pt2")
    with pytest.raises(ClassifierError, match=r"a.pt: the architecture torch.export takes a .pt2 file"):
        load_classifier(**GIVEN, checkpoint="a.pt")
    with pytest.raises(ClassifierError, match=r"classifier torch.export needs a checkpoint"):
        load_classifier(**GIVEN, checkpoint=None)
    with pytest.raises(ClassifierError, match=r"torch.export takes no arguments, got \{'a': 1\}"):
        load_classifier(**{**GIVEN, "arguments": {"a": 1}}, checkpoint="plain.pt2")
    with pytest.raises(
        ClassifierError, match=r"plain.pt2: is a program of torch.export, not weights; set architecture"
    ):
        load_classifier(**{**GIVEN, "architecture": "resnet20"}, checkpoint="plain.pt2")


def test_torchscript_is_refused_with_a_way_out(tmp_path: Path) -> None:
    file = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(file))
    with pytest.raises(
        ClassifierError, match=r"script.pt: is a TorchScript program, not weights; export .*torch.export"
    ):
        load_classifier(**{**GIVEN, "architecture": "resnet20"}, checkpoint=str(file))


class _NamesDevices(nn.Module):
    """Its exported code names the CPU: in a conversion, in what it makes, and in a constant that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 5)
        self.scale = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])

    def forward(self, x: Tensor) -> Tensor:
        made = self.linear(x.flatten(1).float()) * self.scale
        return made + torch.arange(5, device=x.device) + torch.zeros(5, device=x.device)


def test_a_program_that_names_devices_can_be_moved(tmp_path: Path) -> None:
    network = _NamesDevices().eval()
    loaded = load_classifier(**GIVEN, checkpoint=export(tmp_path / "model.pt2", network)).module
    x = torch.rand(7, 1, 8, 8)
    moved = copy.deepcopy(loaded).requires_grad_(False).to("meta")  # it checks devices, as CUDA does
    with torch.inference_mode():
        assert moved(x.to("meta")).shape == (7, 5)
        assert torch.equal(loaded(x), network(x))
    assert not any(parameter.requires_grad for parameter in moved.parameters())
    assert not any(part.training for part in moved.modules())
