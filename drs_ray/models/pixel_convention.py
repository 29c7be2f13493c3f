"""The pixel convention of a classifier: size, range and normalisation, all applied after the noise."""

from __future__ import annotations

from collections import OrderedDict

import torch
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


def agreed(given: PixelsConfig | None, said: PixelsConfig, channels: int, source: str, sub_image: int) -> PixelsConfig:
    """The pixel convention of a classifier whose file says one.

    Args:
        given: the config's; None: the file's applies. Otherwise it must do the same to every pixel, and only its
            `resize` is free.
        said: the file's.
        channels: number of channels of the data set's images.
        source: the file, for errors.
        sub_image: index of the classifier's sub-image, for errors.

    Raises:
        ClassifierError: mean and std do not fit the channels, or the config says something else.
    """
    for values in (said.mean, said.std):
        if values is not None and len(values) != channels:
            raise ClassifierError(
                f"{source}: is for images with {counted(len(values), 'channel')}, the data set has {channels}; choose "
                "a data set and a classifier of as many channels"
            )
    if given is None:
        return said
    ours, theirs = (
        Pixels(pixels.model_copy(update={"resize": None}), channels)(_EVERY_PIXEL.expand(1, channels, -1, 1))
        for pixels in (given, said)
    )
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):  # as papers print them, with four digits
        record = said.model_dump(mode="json", exclude_none=True, exclude={"resize"})
        text = ", ".join(f"{key}: {value}" for key, value in record.items())
        raise ClassifierError(
            f"{source}: says pixels: {{{text}}}, the config says something else; remove "
            f"classifiers.{sub_image}.pixels, or name these values beside its resize"
        )
    return given if given.resize is not None else given.model_copy(update={"resize": said.resize})


_EVERY_PIXEL = torch.linspace(0, 1, 256, dtype=torch.float32, device="cpu").view(1, 1, -1, 1)


def shape_seen(image_shape: Shape, pixels: PixelsConfig | None) -> Shape:
    """(C, h, w) of the network's input for sub-images of `image_shape` as laid out."""
    return image_shape if pixels is None or pixels.resize is None else (image_shape[0], *pixels.resize)


def with_pixels(network: nn.Module, pixels: PixelsConfig | None, channels: int) -> nn.Module:
    """The network after its `Pixels`; without `pixels` the network itself."""
    if pixels is None:
        return network
    return nn.Sequential(OrderedDict([("pixels", Pixels(pixels, channels)), ("network", network)]))
