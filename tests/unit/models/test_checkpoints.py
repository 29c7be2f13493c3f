"""Checkpoints: exact round trips, deterministic bytes, foreign files, and files that must be refused."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
import types
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from drs_ray.errors import ClassifierError
from drs_ray.models.architectures import build_architecture
from drs_ray.models.checkpoints import METADATA_KEY, CheckpointMetadata, load_checkpoint, save_checkpoint
from drs_ray.storage import local

METADATA = CheckpointMetadata(
    architecture="digits-cnn",
    partition="checkerboard",
    layout="packed",
    sub_images=(1,),
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


def test_the_names_in_a_checkpoint_are_what_they_were(tmp_path: Path, module: nn.Module) -> None:
    """Checkpoints of earlier versions are read by them."""
    save_checkpoint(tmp_path / "a.safetensors", module, METADATA)
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        notes = file.metadata()
    assert set(notes) == {"drs_ray"}
    assert json.loads(notes["drs_ray"]) == {
        "architecture": "digits-cnn",
        "partition": "checkerboard",
        "layout": "packed",
        "sub_image": 1,
        "sigma": 2**-0.5,
        "num_classes": 10,
        "image_shape": [1, 28, 14],
        "dataset": "mnist5k",
        "training": "15 epochs",
        "arguments": {"width": 4, "mean": [0.1]},
        "pixels": {},
        "classes": [],
    }


def test_a_checkpoint_names_all_sub_images_of_its_network(tmp_path: Path, module: nn.Module) -> None:
    both = replace(METADATA, sub_images=(0, 1))
    save_checkpoint(tmp_path / "a.safetensors", module, both)
    assert load_checkpoint(tmp_path / "a.safetensors")[1] == both
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        notes = json.loads(file.metadata()["drs_ray"])
    assert notes["sub_images"] == [0, 1]
    assert "sub_image" not in notes
    notes["sub_images"] = []
    safetensors.torch.save_file({"w": torch.zeros(1)}, tmp_path / "b.safetensors", {METADATA_KEY: json.dumps(notes)})
    with pytest.raises(ClassifierError, match=r"b.safetensors: its drs-ray metadata cannot be read"):
        load_checkpoint(tmp_path / "b.safetensors")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.safetensors"
    save_checkpoint(file, module, METADATA)
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local.os, "fsync", full)
    with pytest.raises(ClassifierError, match=r"a.safetensors: cannot be written: .*no space left on the disk"):
        save_checkpoint(file, module, replace(METADATA, sub_images=(0,)))
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


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".pt.tar", ".pth.tar"])
@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model_state_dict", "model", "net", "best", "ema"])
def test_torch_files_plain_or_wrapped(tmp_path: Path, module: nn.Module, suffix: str, wrap: str) -> None:
    own = module.state_dict()
    file = tmp_path / f"a{suffix}"
    torch.save(own if wrap == "plain" else {"epoch": 90, "arch": "resnet", wrap: own}, file)
    tensors, metadata = load_checkpoint(file)
    assert metadata is None
    assert set(tensors) == set(own)
    assert torch.equal(tensors["fc.weight"], own["fc.weight"])


def test_of_several_state_dicts_the_first_is_taken_or_the_one_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    one, two, deep = ({"w": torch.full((1,), value)} for value in (1.0, 2.0, 3.0))
    flat = {"model.w": torch.full((1,), 4.0), "model.b": torch.zeros(1), "mu": torch.zeros(3)}
    torch.save({"best": 0.91, "ema": two, "net": one, "last": {"of all": deep}, "run.1": two, "flat": flat}, file)
    assert load_checkpoint(file)[0]["w"] == 1  # `best` is a number here
    for entry, wanted in (("net", 1), ("ema", 2), ("last.of all", 3), ("run.1", 2)):
        assert load_checkpoint(file, entry)[0]["w"] == wanted
    torch.save({"state_dict": flat}, tmp_path / "lightning.ckpt")
    for place, entry in (
        (file, "flat.model"),
        *((tmp_path / "lightning.ckpt", e) for e in ("state_dict.model", "model")),
    ):
        named = load_checkpoint(place, entry)[0]
        assert {name: float(value) for name, value in named.items()} == {"w": 4.0, "b": 0.0}
    for entry in ("best", "last", "nothing", "net.w", "flat.mode"):
        with pytest.raises(
            ClassifierError, match=rf"a.pt: has no state_dict .* at the entry '{entry}', it is a dict with"
        ):
            load_checkpoint(file, entry)
    safetensors.torch.save_file(flat, tmp_path / "a.safetensors")
    assert set(load_checkpoint(tmp_path / "a.safetensors", "model")[0]) == {"w", "b"}
    with pytest.raises(ClassifierError, match=r"a.safetensors: has no state_dict .* at the entry 'net'"):
        load_checkpoint(tmp_path / "a.safetensors", "net")


@pytest.mark.parametrize("legacy", [False, True])
def test_settings_beside_tensors_are_not_read(tmp_path: Path, legacy: bool) -> None:
    """Numbers of numpy, argparse's Namespace, paths and the like, as training scripts leave them in their files."""
    beside = {
        "best_acc": np.float64(0.93),
        "epoch": np.int64(90),
        "done": np.bool_(True),
        "losses": np.arange(3.0),
        "args": argparse.Namespace(lr=0.1, out=Path("out"), nested=argparse.Namespace(sizes=[1, np.float32(2)])),
        "history": defaultdict(list, {"loss": [np.float64(1.0)]}),
        "counts": defaultdict(int, {"a": 1}),
    }
    file, allowed = tmp_path / "a.ckpt", set(torch.serialization.get_safe_globals())
    torch.save({"state_dict": {"w": torch.arange(3.0)}, **beside}, file, _use_new_zipfile_serialization=not legacy)
    assert load_checkpoint(file)[0]["w"].tolist() == [0, 1, 2]
    assert set(torch.serialization.get_safe_globals()) == allowed  # nothing is left allowed
    torch.save({"w": np.arange(3.0)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ClassifierError, match=r"must hold a state_dict .* got a dict with the keys 'w'"):
        load_checkpoint(file)


def test_extras_of_lightning_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class AttributeDict(dict):  # type: ignore[type-arg]
        pass

    module = types.ModuleType("lightning_fabric.utilities.data")
    AttributeDict.__module__, AttributeDict.__qualname__ = module.__name__, "AttributeDict"
    module.AttributeDict = AttributeDict  # type: ignore[attr-defined]
    for name in ("lightning_fabric", "lightning_fabric.utilities", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {"model.w": torch.arange(3.0)},
        "callbacks": {"ModelCheckpoint{'monitor': 'acc'}": {"best_model_score": torch.tensor(0.9), "dirpath": "out"}},
        "loops": {"fit_loop": {"state_dict": {}}},
        "hparams_name": "kwargs",
        "hyper_parameters": AttributeDict(lr=0.1, width=np.int64(4)),
    }
    torch.save(content, tmp_path / "last.ckpt")
    monkeypatch.undo()
    assert set(load_checkpoint(tmp_path / "last.ckpt")[0]) == {"model.w"}


class _CalledWithCode:
    """What is stood in for is not called either: with this, the real one would."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return argparse.Namespace, (_Code(),)


def test_code_within_settings_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for hidden in (argparse.Namespace(code=_Code()), _CalledWithCode(), defaultdict(list, {"code": _Code()})):
        torch.save({"state_dict": {"w": torch.zeros(1)}, "args": hidden}, "evil.pt")
        with pytest.raises(ClassifierError, match=r"evil.pt: refused, .*mkdir\) and could run code"):
            load_checkpoint("evil.pt")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (
            b"<!DOCTYPE html>\n<html><body>404</body></html>",
            "is a web page (HTML), which a server sent in place of the",
        ),
        (b"\n <html>", "is a web page (HTML)"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page (XML)"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "is a Git LFS pointer, which stands for the file and is not it; run `git lfs pull` where it was cloned",
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "pth.tar", "safetensors"])
def test_what_came_in_place_of_a_checkpoint_is_named(tmp_path: Path, data: bytes, what: str, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(data)
    with pytest.raises(ClassifierError) as caught:
        load_checkpoint(file)
    assert f"checkpoint {file}: {what}" in str(caught.value)


def test_what_is_no_checkpoint_is_not_said_to_run_code(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"hello, this is text")
    with pytest.raises(
        ClassifierError, match=r"a.pt: not a torch checkpoint, or truncated \(it begins with b'hello, this '\)"
    ):
        load_checkpoint(tmp_path / "a.pt")


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
    with pytest.raises(
        ClassifierError, match=r"must end in .safetensors, .pt, .pth, .ckpt, .bin, .pt.tar or .pth.tar, got '.pkl'"
    ):
        load_checkpoint(tmp_path / "a.pkl")
    (tmp_path / "d.pt").mkdir()
    with pytest.raises(ClassifierError, match=r"d.pt: not found"):
        load_checkpoint(tmp_path / "d.pt")
