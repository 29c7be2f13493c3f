"""Built-in architectures: shapes of every layout, parameter counts, published names, normalisation, bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from drs_ray.errors import ClassifierError
from drs_ray.models.architectures import ARCHITECTURES, BasicBlock, build_architecture


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("digits-cnn", (1, 28, 28), 10),
        ("digits-cnn", (1, 28, 14), 10),
        ("digits-cnn", (1, 5, 3), 4),
        ("digits-cnn", (3, 32, 16), 7),
        ("resnet20", (3, 32, 32), 10),
        ("resnet20", (3, 32, 16), 10),
        ("resnet20", (1, 28, 14), 3),
        ("resnet110", (3, 32, 16), 100),
        ("resnet50", (3, 64, 32), 1000),
    ],
)
def test_logits_have_one_column_per_class(name: str, shape: tuple[int, int, int], classes: int) -> None:
    module = build_architecture(name, shape, classes, {}).eval()
    with torch.inference_mode():
        logits = module(torch.rand(2, *shape))
    assert logits.shape == (2, classes)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 32, 16)])
def test_resnets_have_the_published_sizes(shape: tuple[int, int, int]) -> None:
    # He et al. 2016, table 6: 0.27 M and 1.7 M; the 1x1 shortcuts of bearpaw's code add 2,752 weights with batch norms.
    assert _parameters(build_architecture("resnet20", shape, 10, {})) == 272_474
    assert _parameters(build_architecture("resnet110", shape, 10, {})) == 1_730_714


def test_resnet_names_are_bearpaws() -> None:
    names = set(build_architecture("resnet20", (3, 32, 32), 10, {}).state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer1.2.bn2.bias"} <= names
    assert {"layer2.0.downsample.0.weight", "layer3.0.downsample.1.running_var", "fc.bias"} <= names
    assert not any(name.startswith("layer1.0.downsample") for name in names)


def test_a_basic_block_adds_its_input() -> None:
    block = BasicBlock(4, 4, stride=1).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 5, 3)
    assert torch.equal(block(x), x.clamp(min=0))


def test_mean_and_std_are_applied_inside_and_leave_the_names_of_weights_alone() -> None:
    torch.manual_seed(0)
    plain = build_architecture("resnet20", (3, 32, 32), 10, {}).eval()
    given = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
    module = build_architecture("resnet20", (3, 32, 32), 10, given).eval()
    assert {name.removeprefix("network.") for name in module.state_dict()} == set(plain.state_dict())
    module.get_submodule("network").load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 32, 32)
    shifted = (x - torch.tensor(given["mean"]).view(3, 1, 1)) / torch.tensor(given["std"]).view(3, 1, 1)
    with torch.inference_mode():
        assert torch.allclose(module(x), plain(shifted), atol=1e-6)
        assert not torch.allclose(module(x), plain(x), atol=1e-2)


def test_own_arguments_change_the_network() -> None:
    small = build_architecture("digits-cnn", (1, 28, 28), 10, {"width": 4})
    assert _parameters(small) < _parameters(build_architecture("digits-cnn", (1, 28, 28), 10, {}))


def test_a_resnet_stacks_the_pixels_of_squares() -> None:
    torch.manual_seed(0)
    network = build_architecture("resnet20", (3, 32, 16), 10, {"unshuffle": 2}).eval()
    plain = build_architecture("resnet20", (12, 16, 8), 10, {}).eval()
    assert _parameters(network) == 272_474 + 9 * 9 * 16
    plain.load_state_dict(network.state_dict())
    x = torch.rand(2, 3, 32, 16)
    stacked = torch.stack([x[:, c, i::2, j::2] for c in range(3) for i in range(2) for j in range(2)], dim=1)
    with torch.inference_mode():
        assert torch.allclose(network(x), plain(stacked), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "arguments", "message"),
    [
        ("vgg", (3, 32, 32), {}, r"must be one of digits-cnn, .* or your own factory as module:function, got 'vgg'"),
        ("resnet20", (3, 32, 32), {"depth": 56}, r"resnet20: unknown argument 'depth'; allowed: mean, std, unshuffle"),
        ("digits-cnn", (1, 28, 28), {"widht": 3}, r"unknown argument 'widht'; allowed: mean, std, width"),
        ("digits-cnn", (1, 28, 28), {"width": 0}, r"width must be an integer >= 1, got 0"),
        ("digits-cnn", (1, 28, 28), {"width": True}, r"width must be an integer >= 1, got True"),
        ("digits-cnn", (1, 28, 28), {"width": "16"}, r"width must be an integer >= 1, got '16'"),
        ("resnet20", (3, 32, 32), {"mean": [0.5]}, r"mean must be a list of 3 finite numbers, got \[0.5\]"),
        ("resnet20", (3, 32, 32), {"mean": [0.5, 0.5, "a"]}, r"mean must be a list of 3 finite numbers"),
        ("resnet20", (3, 32, 32), {"mean": 0.5}, r"mean must be a list of 3 finite numbers, got 0.5"),
        ("resnet20", (3, 32, 32), {"std": [1.0, 1.0, 0.0]}, r"std must be a list of 3 numbers > 0"),
        ("resnet110", (1, 28, 14), {"unshuffle": 4}, r"resnet110: argument unshuffle must divide .*, 28 and 14, got 4"),
        ("resnet20", (1, 27, 16), {"unshuffle": 2}, r"resnet20: argument unshuffle must divide .*, 27 and 16, got 2"),
        ("resnet50", (1, 28, 28), {}, r"resnet50 takes images with 3 channels, the data set has 1"),
    ],
)
def test_mistakes_are_one_clear_line(
    name: str, shape: tuple[int, int, int], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ClassifierError, match=message) as caught:
        build_architecture(name, shape, 10, arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_every_listed_architecture_is_tested() -> None:
    assert set(ARCHITECTURES) == {"digits-cnn", "resnet20", "resnet110", "resnet50"}
