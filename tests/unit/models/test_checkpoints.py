"""Checkpoints: exact round trips, deterministic bytes, foreign files, and files that must be refused."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from drs_ray.errors import ClassifierError
from drs_ray.models.architectures import build_architecture
from drs_ray.models.checkpoints import METADATA_KEY, CheckpointMetadata, load_checkpoint, save_checkpoint
from drs_ray.results import store

METADATA = CheckpointMetadata(
    architecture="digits-cnn",
    partition="checkerboard",
    layout="packed",
    sub_image=1,
    sigma=2**-0.5,
    num_classes=10,
    image_shape=(1, 28, 14),
    dataset="mnist5k",
    training="15 epochs",
    arguments={"width": 4, "mean": [0.1]},
)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(1)
    return build_architecture("resnet20", (3, 32, 32), 10, {})


def test_round_trip_is_exact(tmp_path: Path, module: nn.Module) -> None:
    file = tmp_path / "deep" / "down" / "a.safetensors"
    save_checkpoint(file, module, METADATA)
    tensors, metadata = load_checkpoint(file)
    assert metadata == METADATA
    own = module.state_dict()
    assert set(tensors) == set(own)
    assert all(torch.equal(tensors[name], own[name]) and tensors[name].dtype == own[name].dtype for name in own)


def test_bytes_depend_on_the_content_alone_and_nothing_is_left_behind(tmp_path: Path, module: nn.Module) -> None:
    for name in ("a", "b"):
        save_checkpoint(tmp_path / f"{name}.safetensors", module, METADATA)
    save_checkpoint(tmp_path / "b.safetensors", module, METADATA)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.safetensors"
    save_checkpoint(file, module, METADATA)
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(ClassifierError, match=r"a.safetensors: cannot be written: .*no space left on the disk"):
        save_checkpoint(file, module, replace(METADATA, sub_image=0))
    assert file.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_only_safetensors_are_written(tmp_path: Path, module: nn.Module) -> None:
    with pytest.raises(ClassifierError, match=r"drs-ray writes .safetensors only"):
        save_checkpoint(tmp_path / "a.pt", module, METADATA)
    (tmp_path / "file").touch()
    with pytest.raises(ClassifierError, match=r"cannot be written: .*choose another place"):
        save_checkpoint(tmp_path / "file" / "a.safetensors", module, METADATA)


def test_foreign_safetensors_have_no_metadata(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"w": torch.arange(3.0)}, tmp_path / "f.safetensors", metadata)
        tensors, found = load_checkpoint(tmp_path / "f.safetensors")
        assert found is None
        assert tensors["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"architecture": "x"})])
def test_broken_metadata_is_refused_not_ignored(tmp_path: Path, text: str) -> None:
    safetensors.torch.save_file({"w": torch.zeros(1)}, tmp_path / "f.safetensors", {METADATA_KEY: text})
    with pytest.raises(ClassifierError, match=r"f.safetensors: its drs-ray metadata cannot be read"):
        load_checkpoint(tmp_path / "f.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model"])
def test_torch_files_plain_or_wrapped(tmp_path: Path, module: nn.Module, suffix: str, wrap: str) -> None:
    own = module.state_dict()
    file = tmp_path / f"a{suffix}"
    torch.save(own if wrap == "plain" else {"epoch": 90, "arch": "resnet", wrap: own}, file)
    tensors, metadata = load_checkpoint(file)
    assert metadata is None
    assert set(tensors) == set(own)
    assert torch.equal(tensors["fc.weight"], own["fc.weight"])


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(1), "code": _Code()}, "evil.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        ClassifierError, match=r"evil.pt: refused, .*\((posix|nt).mkdir\) and could run code.*as .safe"
    ) as caught:
        load_checkpoint("evil.pt")
    assert "\n" not in str(caught.value)
    Path("plain.pth").write_bytes(pickle.dumps(_Code()))
    with pytest.raises(ClassifierError, match=r"plain.pth: (refused|not a torch checkpoint)"):
        load_checkpoint("plain.pth")
    assert not Path("ran").exists()


def test_truncated_and_foreign_files(tmp_path: Path, module: nn.Module) -> None:
    save_checkpoint(tmp_path / "a.safetensors", module, METADATA)
    torch.save(module.state_dict(), tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        data = (tmp_path / name).read_bytes()
        for part in (data[: len(data) // 2], data[:7], b"", b"hello, this is text"):
            (tmp_path / f"cut-{name}").write_bytes(part)
            with pytest.raises(ClassifierError, match=rf"cut-{name}: (not a|refused)") as caught:
                load_checkpoint(tmp_path / f"cut-{name}")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ([torch.zeros(1)], "got a list"),
        ({}, "got a dict with the keys"),
        ({"epoch": 3, "net": {}}, "got a dict with the keys 'epoch', 'net'"),
    ],
)
def test_torch_files_without_a_state_dict(tmp_path: Path, content: object, got: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ClassifierError, match=rf"a.pt: must hold a state_dict .*{got}"):
        load_checkpoint(tmp_path / "a.pt")


def test_missing_files_suffixes_and_directories(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=r"gone.safetensors: not found; check the path$"):
        load_checkpoint(tmp_path / "gone.safetensors")
    with pytest.raises(ClassifierError, match=r"must end in .safetensors, .pt, .pth or .pth.tar, got '.ckpt'"):
        load_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "d.pt").mkdir()
    with pytest.raises(ClassifierError, match=r"d.pt: not found"):
        load_checkpoint(tmp_path / "d.pt")
