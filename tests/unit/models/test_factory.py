"""The factory: what loads, what warns, what is refused, and the check that every classifier must pass."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from drs_ray.config import DenoiserConfig, PixelsConfig
from drs_ray.errors import ClassifierError
from drs_ray.models.architectures import build_architecture
from drs_ray.models.check import check_classifier, same_probe
from drs_ray.models.checkpoints import save_checkpoint
from drs_ray.models.factory import load_classifier
from drs_ray.models.tensors import load_tensors, module_digest
from tests.support.checkpoints import trained_for

SHAPE = (1, 28, 14)
GIVEN: dict[str, Any] = {
    "architecture": "digits-cnn",
    "arguments": {"width": 4},
    "sub_image": 1,
    "partition": "checkerboard",
    "layout": "packed",
    "sigma": 2**-0.5,
    "image_shape": SHAPE,
    "num_classes": 10,
    "dataset": "mnist5k",
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    torch.manual_seed(3)
    module = build_architecture("digits-cnn", SHAPE, 10, {"width": 4})
    file = tmp_path / "right.safetensors"
    save_checkpoint(file, module, trained_for(**GIVEN))
    return str(file)


def test_a_fitting_checkpoint_loads_frozen_and_without_warnings(checkpoint: str) -> None:
    torch.manual_seed(3)
    expected = build_architecture("digits-cnn", SHAPE, 10, {"width": 4}).eval()
    torch.manual_seed(4)
    loaded = load_classifier(**GIVEN, checkpoint=checkpoint)
    assert loaded.warnings == ()
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())
    x = torch.rand(3, *SHAPE)
    assert torch.equal(loaded.module(x), expected(x))
    assert loaded.digest == module_digest(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sub_image": 0},
            r"right.safetensors: trained for sub-image 1, the run needs 0; name the checkpoint of this sub",
        ),
        ({"partition": "none"}, r"trained for partition checkerboard, the run needs none"),
        ({"layout": "masked"}, r"trained for layout packed, the run needs masked"),
        ({"architecture": "resnet20", "arguments": {}}, r"trained for architecture digits-cnn, the run needs resnet20"),
        ({"arguments": {"width": 4, "mean": [0.1]}}, r"trained for arguments \{\"width\": 4\}, the run needs"),
        ({"num_classes": 9}, r"trained for num-classes 10, the run needs 9"),
        ({"image_shape": (1, 14, 28)}, r"trained for image-shape \(1, 28, 14\), the run needs \(1, 14, 28\)"),
    ],
)
def test_a_checkpoint_for_something_else_is_refused(checkpoint: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ClassifierError, match=message):
        load_classifier(**{**GIVEN, **change}, checkpoint=checkpoint)


def test_another_sigma_or_data_set_is_a_warning(checkpoint: str) -> None:
    loaded = load_classifier(**{**GIVEN, "sigma": 1.0}, checkpoint=checkpoint)
    (warning,) = loaded.warnings
    assert "sub-image 1" in warning
    assert "was trained with sigma 0.707106781, the run uses 1" in warning
    (warning,) = load_classifier(**{**GIVEN, "dataset": "mnist"}, checkpoint=checkpoint).warnings
    assert "trained on mnist5k, the run uses mnist" in warning


def test_a_builtin_without_checkpoint_is_refused() -> None:
    with pytest.raises(
        ClassifierError, match=r"sub-image 1: classifier digits-cnn needs a checkpoint; set classifiers.1"
    ):
        load_classifier(**GIVEN, checkpoint=None)


@pytest.mark.parametrize("prefix", ["", "module.", "1.", "1.module.", "module.1."])
def test_foreign_state_dicts_load_under_any_common_prefix(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(5)
    source = build_architecture("resnet20", (3, 32, 16), 10, {})
    tensors = {prefix + name: value for name, value in source.state_dict().items()}
    for name in [name for name in tensors if name.endswith("num_batches_tracked")]:
        del tensors[name]  # as in files written by torch 0.4
    torch.save({"state_dict": tensors}, tmp_path / "cohen.pth.tar.pt")
    given = {**GIVEN, "architecture": "resnet20", "image_shape": (3, 32, 16), "dataset": None}
    arguments = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    loaded = load_classifier(**{**given, "arguments": arguments}, checkpoint=str(tmp_path / "cohen.pth.tar.pt"))
    x = torch.rand(2, 3, 32, 16)
    with torch.inference_mode():
        assert torch.allclose(loaded.module(x), source.eval()((x - 0.5) / 0.2), atol=1e-5)
    arguments["mean"] = [0.5, 0.5, 0.4]
    other = load_classifier(**{**given, "arguments": arguments}, checkpoint=str(tmp_path / "cohen.pth.tar.pt"))
    assert other.digest != loaded.digest  # normalisation changes votes as weights do


def test_other_tensors_are_listed(tmp_path: Path) -> None:
    file = str(tmp_path / "other.safetensors")
    safetensors.torch.save_file({"a.weight": torch.zeros(2), "b.weight": torch.zeros(2)}, file)
    with pytest.raises(ClassifierError) as caught:
        load_classifier(**GIVEN, checkpoint=file)
    message = str(caught.value)
    assert "other.safetensors" in message
    assert "missing: conv1.weight, bn1.weight, bn1.bias and" in message
    assert "unexpected: a.weight, b.weight)" in message


def test_misshapen_tensors_are_listed(tmp_path: Path) -> None:
    module = build_architecture("digits-cnn", SHAPE, 10, {"width": 8})
    file = str(tmp_path / "wide.safetensors")
    safetensors.torch.save_file(module.state_dict(), file)
    with pytest.raises(
        ClassifierError, match=r"wide.safetensors: .*conv1.weight \[8, 1, 3, 3\] instead of \[4, 1, 3, 3\]"
    ):
        load_classifier(**GIVEN, checkpoint=file)


def test_a_tensor_is_never_dropped_in_silence() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    tensors = {**module.state_dict(), "0.extra": torch.zeros(1)}
    with pytest.raises(ClassifierError, match=r"unexpected: 0.extra"):
        load_tensors(module, tensors, "memory")


@pytest.mark.parametrize("prefix", ["", "model.", "1.module."])
def test_a_normalisation_beside_the_network_is_left_out_where_the_config_does_the_same(prefix: str) -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    wanted = {name: torch.rand_like(value) for name, value in module.state_dict().items()}
    tensors = {prefix + name.removeprefix("0."): value for name, value in wanted.items()}
    tensors |= {"mu": torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), "normalize.std": torch.tensor([[0.25] * 3])}
    load_tensors(module, tensors, "memory", PixelsConfig(mean=(0.1, 0.2, 0.3), std=(0.25, 0.25, 0.25)))
    assert all(torch.equal(value, wanted[name]) for name, value in module.state_dict().items())
    for pixels in (
        None,
        PixelsConfig(),
        PixelsConfig(mean=(0.1, 0.2, 0.3)),
        PixelsConfig(mean=(0.1, 0.2, 0.31), std=(0.25, 0.25, 0.25)),
    ):
        with pytest.raises(ClassifierError) as caught:
            load_tensors(module, tensors, "memory", pixels)
        assert str(caught.value) == (
            "checkpoint memory: a normalisation of pixels lies beside the network (mu, normalize.std), and the "
            "config's does not agree; set classifiers.<k>.pixels: {mean: [0.1, 0.2, 0.3], std: [0.25, 0.25, 0.25]}"
        )
    with pytest.raises(ClassifierError, match=r"unexpected: .*0.extra"):
        load_tensors(module, {**tensors, "extra": torch.zeros(1)}, "memory", None)


def test_the_entry_of_the_config_is_loaded(tmp_path: Path) -> None:
    module = build_architecture("digits-cnn", SHAPE, 10, {"width": 4})
    other = {name: value + 1 if value.is_floating_point() else value for name, value in module.state_dict().items()}
    file = str(tmp_path / "a.ckpt")
    torch.save({"model": module.state_dict(), "ema": other}, file)
    by_entry = {
        entry: load_classifier(**GIVEN, checkpoint=file, entry=entry).digest for entry in (None, "model", "ema")
    }
    assert by_entry[None] == by_entry["model"] != by_entry["ema"]


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    module = build_architecture("digits-cnn", SHAPE, 10, {"width": 4})
    with torch.no_grad():
        next(iter(module.parameters()))[0] = math.nan
    file = tmp_path / "nan.safetensors"
    save_checkpoint(file, module, trained_for(**GIVEN))
    with pytest.raises(ClassifierError, match=r"sub-image 1: the classifier returns NaN or infinite logits"):
        load_classifier(**GIVEN, checkpoint=str(file))


class Answer(nn.Module):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        return self.answer(x) if callable(self.answer) else self.answer


def _raise(x: Tensor) -> None:
    raise IndexError("size of\nsomething")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x.new_zeros(len(x), 9), r"logits of shape \[8, 10\] for inputs \[8, 1, 28, 14\] .*got \[8, 9\]"),
        (lambda x: x.new_zeros(10), r"got \[10\]"),
        (lambda x: (x, x), r"must return float logits of shape \[8, 10\], got tuple"),
        (lambda x: x.new_zeros(len(x), 10).long(), r"got a tensor of torch.int64"),
        (lambda x: x.new_full((len(x), 10), math.inf), r"NaN or infinite"),
        (lambda x: x.new_full((len(x), 10), math.nan), r"NaN or infinite"),
        (_raise, r"failed on an input of shape \[8, 1, 28, 14\] \(IndexError: size of\); it must accept"),
    ],
)
def test_the_check_names_sub_image_and_what_was_got(answer: object, message: str) -> None:
    with pytest.raises(ClassifierError, match=rf"sub-image 7: the classifier .*{message}") as caught:
        check_classifier(Answer(answer).eval(), SHAPE, 10, 7)
    assert "\n" not in str(caught.value)


def test_the_check_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    check_classifier(Answer(lambda x: x.new_zeros(len(x), 10)).eval(), SHAPE, 10, 0)
    assert torch.equal(torch.rand(1), expected)


def test_digest_sees_one_weight_a_name_and_a_type() -> None:
    module = nn.Linear(2, 2)
    digests = {module_digest(module), module_digest(nn.Sequential(module)), module_digest(nn.Linear(2, 2).half())}
    with torch.no_grad():
        module.weight[0, 0] += 1e-6
    assert len(digests | {module_digest(module)}) == 4


FACTORY = """
import torch
from torch import nn

def make(image_shape, num_classes, gain=1.0):
    c, h, w = image_shape
    net = nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, num_classes))
    with torch.no_grad():
        net[1].weight.fill_(gain)
    return net

def nothing(image_shape, num_classes):
    return "not a module"

def broken(image_shape, num_classes):
    raise RuntimeError("no weights here")

value = 3
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "users_factory.py").write_text(FACTORY)
    (tmp_path / "users_broken.py").write_text("import no_such_module_anywhere")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("users_factory", "users_broken"):
        sys.modules.pop(name, None)


def test_a_users_factory_is_found_in_the_current_directory(user_module: Path) -> None:
    before = list(sys.path)
    given = {**GIVEN, "architecture": "users_factory:make", "arguments": {"gain": 2.0}}
    loaded = load_classifier(**given, checkpoint=None)
    assert sys.path == before
    assert torch.all(loaded.module.get_parameter("1.weight") == 2.0)
    assert not loaded.module.training


def test_a_users_factory_may_have_a_checkpoint(user_module: Path) -> None:
    weights = {
        "1.weight": torch.full((10, 392), 3.0),
        "1.bias": torch.arange(10.0),
    }  # classes that rounding cannot swap
    safetensors.torch.save_file(weights, "own.safetensors")
    given = {**GIVEN, "architecture": "users_factory:make", "arguments": {}}
    loaded = load_classifier(**given, checkpoint="own.safetensors")
    assert torch.all(loaded.module.get_parameter("1.weight") == 3.0)


@pytest.mark.parametrize(
    ("architecture", "arguments", "message"),
    [
        ("nowhere_at_all:make", {}, r"module 'nowhere_at_all' cannot be imported .*PYTHONPATH"),
        (
            "users_broken:make",
            {},
            r"'users_broken' cannot be imported \(ModuleNotFoundError: .*no_such_module_anywhere",
        ),
        ("users_factory:maek", {}, r"users_factory has no function 'maek'"),
        ("users_factory:value", {}, r"users_factory has no function 'value'"),
        ("users_factory:make", {"gian": 2}, r"raised TypeError: .*gian"),
        ("users_factory:broken", {}, r"raised RuntimeError: no weights here"),
        ("users_factory:nothing", {}, r"must return a torch.nn.Module, got str"),
        (":make", {}, r"module '' cannot be imported"),
    ],
)
def test_mistakes_in_a_users_factory(
    user_module: Path, architecture: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClassifierError, match=message) as caught:
        load_classifier(**{**GIVEN, "architecture": architecture, "arguments": arguments}, checkpoint=None)
    assert "\n" not in str(caught.value)


class _Dropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x.flatten(1)[:, :10])  # training=True is its default


class _Hidden(nn.Module):
    """Parts in a plain list: `eval()` does not reach them."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [nn.BatchNorm1d(10)]

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](x.flatten(1)[:, :10])


class _Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, :10]
        return logits - logits.mean(dim=0)


class _StaysInTraining(Answer):
    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)


@pytest.mark.parametrize(
    ("module", "fault"),
    [
        (_Dropout(), r"draws random numbers \(torch\) when it is called"),
        (_Hidden(), "alone|failed on an input|order"),
        (_Centred(), "answers a sample differently alone and in a batch"),
        (_StaysInTraining(lambda x: x.new_zeros(len(x), 10)), "is in train mode"),
    ],
)
def test_classifiers_that_are_no_function_of_a_sample_are_refused(module: nn.Module, fault: str) -> None:
    with pytest.raises(ClassifierError, match=fault):
        check_classifier(module.eval(), SHAPE, 10, 0)


def test_the_probe_tells_other_code_behind_the_same_weights() -> None:
    first = check_classifier(Answer(lambda x: x.flatten(1)[:, :10]).eval(), SHAPE, 10, 0)
    again = check_classifier(Answer(lambda x: x.flatten(1)[:, :10] + 1e-6).eval(), SHAPE, 10, 0)
    other = check_classifier(Answer(lambda x: x.flatten(1)[:, 1:11]).eval(), SHAPE, 10, 0)
    assert same_probe(first, again)
    assert not same_probe(first, other)
    assert not same_probe(first, first[:-1])


def test_a_missing_file_is_said_with_the_key_that_names_it(tmp_path: Path, user_module: Path) -> None:
    """And to train one is advised where training would write it."""

    def remedy(name: str, **given: Any) -> str:
        with pytest.raises(ClassifierError, match=rf"^checkpoint {tmp_path}/{name}: not found; ") as caught:
            load_classifier(**GIVEN | given)
        return str(caught.value).partition("; ")[2]

    key, train = "correct classifiers.1.checkpoint", ", or train it with `drs-ray train`"
    assert GIVEN["sub_image"] == 1
    assert remedy("a.safetensors", checkpoint=str(tmp_path / "a.safetensors")) == key + train
    assert remedy("a.pth", checkpoint=str(tmp_path / "a.pth")) == key
    assert remedy("a.pt2", checkpoint=str(tmp_path / "a.pt2"), architecture="torch.export", arguments={}) == key
    denoiser = DenoiserConfig(architecture="dncnn", checkpoint=str(tmp_path / "d.pth"))
    factory = {"architecture": "users_factory:make", "arguments": {}, "checkpoint": None, "denoiser": denoiser}
    assert remedy("d.pth", **factory) == "correct classifiers.1.denoiser.checkpoint"
