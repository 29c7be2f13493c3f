"""Built-in base classifiers: a small CNN for digits, ResNet-20/110 for 32x32 images, torchvision's ResNet-50.

All of them take sub-images of any size and layout. Inputs are pixels in [0, 1] plus unbounded noise. Normalisation is
part of the classifier: arguments `mean` and `std`, one number per channel.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn import functional

from drs_ray.errors import ClassifierError

_Builder = Callable[[tuple[int, int, int], int, Mapping[str, int]], nn.Module]
"""Input shape (C, h, w), number of classes, the architecture's own arguments -> a new network."""


def build_architecture(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    arguments: Mapping[str, JsonValue] | None = None,
) -> nn.Module:
    """A new, untrained network: float32 [N, C, h, w] -> logits float32 [N, num_classes].

    Args:
        name: one of `ARCHITECTURES`.
        image_shape: (C, h, w) of a sub-image as laid out for the classifier, for example (1, 28, 14).
        num_classes: number of logits.
        arguments: `mean` and `std` (a list with one number per channel), and the architecture's own (`ARCHITECTURES`).

    Raises:
        ClassifierError: an unknown name, or an unknown or invalid argument.
    """
    if name not in ARCHITECTURES:
        raise ClassifierError(
            f"classifier architecture must be one of {', '.join(ARCHITECTURES)}, torchvision:<name>, timm:<name>, "
            f"transformers, torch.export, or your own factory as module:function, got {name!r}"
        )
    own = dict(arguments or {})
    mean, std = own.pop("mean", None), own.pop("std", None)
    build, defaults = ARCHITECTURES[name]
    for key, value in own.items():
        if key not in defaults:
            allowed = ", ".join(["mean", "std", *defaults])
            raise ClassifierError(f"classifier {name}: unknown argument {key!r}; allowed: {allowed}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ClassifierError(f"classifier {name}: argument {key} must be an integer >= 1, got {value!r}")
    network = build(image_shape, num_classes, {**defaults, **{key: int(str(value)) for key, value in own.items()}})
    if mean is None and std is None:
        return network
    channels = image_shape[0]
    normalize = Normalize(
        _per_channel("mean", [0.0] * channels if mean is None else mean, channels, -math.inf),
        _per_channel("std", [1.0] * channels if std is None else std, channels, 0.0),
    )
    return nn.Sequential(OrderedDict([("normalize", normalize), ("network", network)]))


class Normalize(nn.Module):
    """(x - mean) / std per channel. Its constants come from the config, not from a checkpoint."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, C, h, w]."""
        return (x - self.get_buffer("mean")) / self.get_buffer("std")


class DigitsCNN(nn.Module):
    """Three 3x3 convolutions, two of them with stride 2, and two linear layers: 1.4 million products for a digit.

    The linear layers see the position of a feature: under noise as strong as sigma = 1 only its position tells a stroke
    from noise. A global average instead halves the average certified radius (measured).
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, width: int, hidden: int) -> None:
        super().__init__()
        channels, height, columns = image_shape
        cells = math.ceil(height / 4) * math.ceil(columns / 4)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.fc1 = nn.Linear(4 * width * cells, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> logits [N, num_classes]."""
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.relu(self.bn2(self.conv2(x)), inplace=True)
        x = functional.relu(self.bn3(self.conv3(x)), inplace=True)
        x = functional.relu(self.fc1(x.flatten(1)), inplace=True)
        logits: Tensor = self.fc2(x)
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, h, w] -> [N, outputs, h / stride, w / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x)) + shortcut
        return functional.relu(x, inplace=True)


class CifarResNet(nn.Module):
    """The 16-32-64 ResNet for 32x32 images, depth = 6n + 2.

    unshuffle: side r of the squares of pixels whose channels are stacked before the first convolution
    (`torch.nn.PixelUnshuffle`). A pass then costs about 1 / r^2. 1: none.

    Parameter names are those of bearpaw/pytorch-classification, which Cohen et al. and the authors of DRS trained, so
    that their checkpoints load.
    """

    def __init__(self, depth: int, channels: int, num_classes: int, unshuffle: int = 1) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.unshuffle = nn.PixelUnshuffle(unshuffle) if unshuffle > 1 else nn.Identity()
        self.conv1 = nn.Conv2d(channels * unshuffle**2, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> logits [N, num_classes]."""
        x = self.relu(self.bn1(self.conv1(self.unshuffle(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def _cifar_resnet(depth: int) -> _Builder:
    def build(image_shape: tuple[int, int, int], num_classes: int, own: Mapping[str, int]) -> nn.Module:
        channels, height, width = image_shape
        if height % own["unshuffle"] or width % own["unshuffle"]:
            raise ClassifierError(
                f"classifier resnet{depth}: argument unshuffle must divide the height and width of the input, "
                f"{height} and {width}, got {own['unshuffle']}"
            )
        return CifarResNet(depth, channels, num_classes, **own)

    return build


def _resnet50(image_shape: tuple[int, int, int], num_classes: int, _: Mapping[str, int]) -> nn.Module:
    need_colour("resnet50", image_shape)
    from torchvision import models  # takes a second to import

    network: nn.Module = models.resnet50(weights=None, num_classes=num_classes)
    return network


def need_colour(architecture: str, image_shape: tuple[int, int, int]) -> None:
    """Refuse images for an architecture that takes only 3 channels.

    Raises:
        ClassifierError: the images have another number of channels.
    """
    if image_shape[0] != 3:
        raise ClassifierError(
            f"classifier {architecture} takes images with 3 channels, the data set has {image_shape[0]}; "
            "choose another architecture"
        )


def _per_channel(key: str, value: JsonValue, channels: int, above: float) -> list[float]:
    numbers = value if isinstance(value, list) else []
    result = [float(v) for v in numbers if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(result) != channels or len(numbers) != channels or not all(above < v < math.inf for v in result):
        rule = "finite numbers" if above < 0 else "numbers > 0"
        raise ClassifierError(f"classifier argument {key} must be a list of {channels} {rule}, got {value!r}")
    return result


ARCHITECTURES: Mapping[str, tuple[_Builder, Mapping[str, int]]] = {
    "digits-cnn": (lambda shape, classes, own: DigitsCNN(shape, classes, **own), {"width": 16, "hidden": 64}),
    "resnet20": (_cifar_resnet(20), {"unshuffle": 1}),
    "resnet110": (_cifar_resnet(110), {"unshuffle": 1}),
    "resnet50": (_resnet50, {}),
}
"""Name -> function that builds it, and its own integer arguments with their defaults."""
