"""The pixel convention of a classifier: size, range and normalisation, all applied after the noise."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from drs_ray.config import PixelsConfig
from drs_ray.errors import ClassifierError, counted
from drs_ray.models.architectures import Normalize

Shape = tuple[int, int, int]


class Pixels(nn.Module):
    """Noisy pixels in units of [0, 1] -> the pixels that a network was trained on. It has no weights."""

    def __init__(self, pixels: PixelsConfig, channels: int) -> None:
        """`pixels.mean` and `pixels.std`, if given, have one number per channel (`check_channels`)."""
        super().__init__()
        self._size = pixels.resize
        self._low, high = pixels.range
        self._scale = high - self._low
        self._normalize: Normalize | None = None
        if pixels.mean is not None or pixels.std is not None:
            self._normalize = Normalize(list(pixels.mean or [0.0] * channels), list(pixels.std or [1.0] * channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, C, *resize]."""
        if self._size is not None:
            x = functional.interpolate(x, self._size, mode="bilinear", align_corners=False)
        if (self._low, self._scale) != (0.0, 1.0):
            x = x * self._scale + self._low
        return x if self._normalize is None else self._normalize(x)


def check_channels(pixels: PixelsConfig | None, channels: int, sub_image: int) -> None:
    """Check that mean and std, if given, have one number per channel of the data set's images.

    Raises:
        ClassifierError: naming the key of the sub-image's classifier.
    """
    for name in ("mean", "std") if pixels is not None else ():
        values = getattr(pixels, name)
        if values is not None and len(values) != channels:
            raise ClassifierError(
                f"classifiers.{sub_image}.pixels.{name} must be a list of {counted(channels, 'number')}, one per "
                f"channel of the data set's images, got {list(values)}; choose a data set and a classifier of as many "
                "channels"
            )


def shape_seen(image_shape: Shape, pixels: PixelsConfig | None) -> Shape:
    """(C, h, w) of the network's input for sub-images of `image_shape` as laid out."""
    return image_shape if pixels is None or pixels.resize is None else (image_shape[0], *pixels.resize)


def with_pixels(network: nn.Module, pixels: PixelsConfig | None, channels: int) -> nn.Module:
    """The network after its `Pixels`; without `pixels` the network itself."""
    if pixels is None:
        return network
    return nn.Sequential(OrderedDict([("pixels", Pixels(pixels, channels)), ("network", network)]))
