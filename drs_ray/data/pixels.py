"""The 8-bit pixels of one image: out of an image file's bytes, into a lossless file, and as numbers in [0, 1]."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_MODES = {1: "L", 3: "RGB"}


def unit_range(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32(v) / 255 for each pixel, in the same shape."""
    return pixels.astype(np.float32) / np.float32(255)


def decode(data: bytes, channels: int, image_size: int | None = None) -> NDArray[np.uint8]:
    """The pixels of an image file, uint8 [channels, H, W].

    Args:
        data: the whole file, in any format that Pillow knows.
        channels: 1 (grey) or 3 (RGB).
        image_size: resize the short side to round(8/7 image_size), then crop the centre; None: as it is.

    Raises:
        ValueError: one line that says why it cannot be read.
    """
    mode = _MODES[channels]
    try:
        with Image.open(io.BytesIO(data)) as image:
            deep = None if image.mode in _EIGHT_BIT_MODES else image.mode
            picture = image.convert(mode)
    except UnidentifiedImageError:  # its text shows an address in memory
        raise ValueError("no image, or of a format that is not known") from None
    except Exception as error:  # decoders raise anything on broken files: SyntaxError, struct.error, OSError, ...
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    if deep is not None:
        raise ValueError(f"mode {deep} has more than 8 bits per channel: convert it to an 8-bit image")
    if image_size is not None:
        picture = _resize_and_crop(picture, image_size)
    pixels = np.asarray(picture, dtype=np.uint8)
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file that decodes to the same uint8 [C, H, W], C 1 or 3."""
    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(
        file, "png"
    )
    return file.getvalue()


def _resize_and_crop(picture: Image.Image, image_size: int) -> Image.Image:
    """Short side to round(8/7 image_size) (256 for 224), then the centre: pixel for pixel torchvision's transforms."""
    short = round(image_size * 8 / 7)
    width, height = picture.size
    smaller = min(width, height)
    width, height = int(short * width / smaller), int(short * height / smaller)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    return picture.crop((left, top, left + image_size, top + image_size))
