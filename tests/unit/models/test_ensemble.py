"""Ensembles: the mean of their members' logits, one classifier to everything after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from drs_ray.errors import ClassifierError
from drs_ray.models.architectures import build_architecture
from drs_ray.models.checkpoints import load_checkpoint, save_checkpoint
from drs_ray.models.ensemble import Ensemble
from drs_ray.models.factory import BaseClassifier, load_classifier
from drs_ray.models.inference import inference_module, voting_classifier
from tests.support.checkpoints import trained_for

SHAPE = (1, 28, 14)
GIVEN: dict[str, Any] = {
    "architecture": "digits-cnn",
    "arguments": {"width": 4},
    "sub_image": 1,
    "partition": "checkerboard",
    "layout": "packed",
    "sigma": 0.5,
    "image_shape": SHAPE,
    "num_classes": 10,
    "dataset": "mnist5k",
}


def _saved(file: Path, seed: int, **changed: Any) -> str:
    given = {**GIVEN, **changed}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_architecture("digits-cnn", SHAPE, 10, given["arguments"])
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None and part.running_var is not None:
            part.running_mean.fill_(0.1 * seed)  # statistics as after a training
            part.running_var.fill_(1.5)
    save_checkpoint(file, module, trained_for(**given))
    return str(file)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return [_saved(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2, 3)]


def _loaded(files: list[str], **changed: Any) -> BaseClassifier:
    return load_classifier(**{**GIVEN, **changed}, checkpoint=files[0], members=tuple(files[1:]))


def _inputs(count: int = 6) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(4))


@torch.inference_mode()
def _logits(module: nn.Module) -> np.ndarray:
    return module(_inputs()).double().numpy()  # type: ignore[no-any-return]


def test_the_logits_are_the_mean_of_the_members(files: list[str]) -> None:
    ensemble = _loaded(files)
    assert ensemble.warnings == ()
    assert not any(part.training for part in ensemble.module.modules())
    assert not any(parameter.requires_grad for parameter in ensemble.module.parameters())
    alone = [_logits(_loaded([file]).module) for file in files]
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    assert _logits(ensemble.module) == pytest.approx(np.mean(alone, axis=0), abs=1e-6)


def test_another_member_is_another_classifier(files: list[str], tmp_path: Path) -> None:
    first = _loaded(files).digest
    assert _loaded(files).digest == first
    others = [files[:1], files[:2], [*files[:2], _saved(tmp_path / "other.safetensors", 4)]]
    assert len({first, *(_loaded(other).digest for other in others)}) == 4


def test_a_classifier_without_members_is_no_ensemble(files: list[str]) -> None:
    """Its digest and its logits are those of earlier versions."""
    assert not any(isinstance(part, Ensemble) for part in _loaded(files[:1]).module.modules())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sub_image": 0}, r"bad.safetensors: trained for sub-image 0, the run needs 1; name the checkpoint of this"),
        ({"arguments": {"width": 8}}, r'bad.safetensors: trained for arguments \{"width": 8\}, the run needs'),
        ({"partition": "none"}, r"bad.safetensors: trained for partition none, the run needs checkerboard"),
    ],
)
def test_a_member_that_does_not_fit_is_named(
    files: list[str], tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    bad = _saved(tmp_path / "bad.safetensors", 5, **changed)
    with pytest.raises(ClassifierError, match=message) as caught:
        _loaded([*files, bad])
    assert "\n" not in str(caught.value)


def test_a_member_of_another_network_or_place_is_named(files: list[str], tmp_path: Path) -> None:
    torch.save(build_architecture("digits-cnn", SHAPE, 10, {"width": 8}).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(ClassifierError, match=r"wide.pt: its tensors do not have the architecture's shapes"):
        _loaded([*files, str(tmp_path / "wide.pt")])
    with pytest.raises(ClassifierError, match=r"nowhere.pt: not found; correct classifiers.1.members$"):
        _loaded([*files, str(tmp_path / "nowhere.pt")])


_ONE: list[nn.Module] = []


def always_one(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A factory that keeps what it made."""
    if not _ONE:
        _ONE.append(build_architecture("digits-cnn", image_shape, num_classes, {"width": 4}))
    return _ONE[0]


def test_members_that_share_weights_are_refused(files: list[str], tmp_path: Path) -> None:
    plain = []
    for number, file in enumerate(files[:2]):
        tensors, _ = load_checkpoint(file)
        save_file(tensors, tmp_path / f"plain-{number}.safetensors")
        plain.append(str(tmp_path / f"plain-{number}.safetensors"))
    with pytest.raises(ClassifierError, match=r"always_one returns networks that share weights, so that all members w"):
        _loaded(plain, architecture=f"{__name__}:always_one", arguments={})


def test_a_members_other_sigma_is_a_warning(files: list[str], tmp_path: Path) -> None:
    (warning,) = _loaded([*files, _saved(tmp_path / "quiet.safetensors", 5, sigma=0.25)]).warnings
    assert "quiet.safetensors was trained with sigma 0.25, the run uses 0.5" in warning


def test_a_member_that_changes_its_input_changes_no_other() -> None:
    class Doubles(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2).flatten(1)[:, :10]  # in place, as a classifier may

    inputs = _inputs()
    assert torch.equal(Ensemble([Doubles(), Doubles()])(inputs.clone()), inputs.mul(2).flatten(1)[:, :10])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_votes_folded_and_in_either_precision(files: list[str], precision: Any) -> None:
    def votes(files: list[str]) -> nn.Module:
        return inference_module(_loaded(files).module, precision, torch.device("cpu"), SHAPE, 10, 1)

    ensemble = votes(files)
    assert any(isinstance(part, nn.BatchNorm2d) for part in _loaded(files).module.modules())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in ensemble.modules())
    alone = [_logits(votes([file])) for file in files]
    assert _logits(ensemble) == pytest.approx(np.mean(alone, axis=0), abs=1e-5)  # the mean is not rounded to bfloat16


@pytest.mark.slow
def test_it_compiles_to_one_graph(files: list[str]) -> None:
    module = _loaded(files).module
    given: dict[str, Any] = {"device": torch.device("cpu"), "image_shape": SHAPE, "num_classes": 10, "sub_image": 1}
    compiled = voting_classifier(module, precision="float32", compile=True, batch=8, **given).module
    expected = _logits(module)
    assert np.abs(_logits(compiled) - expected).max() < 1e-4 * np.ptp(expected)
