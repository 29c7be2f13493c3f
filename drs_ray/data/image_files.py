"""The 8-bit pixels of one image: decoded from an image file, encoded losslessly, and scaled to [0, 1]."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_MODES = {1: "L", 3: "RGB"}
_HEAD = 4096
_PPM_HEADER = re.compile(rb"P[2356](?:(?:\s|#[^\r\n]*[\r\n])+(\d+)){3}\s")
_TIFF_BITS, _TIFF_SAMPLE_FORMAT = 258, 339


class UnfitImageError(ValueError):
    """An intact image that is not 8-bit, or neither grey nor RGB, and must be converted."""


def unit_range(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32(v) / 255 for each pixel, in the same shape."""
    return pixels.astype(np.float32) / np.float32(255)


def decode(data: bytes, channels: int, image_size: int | None = None) -> NDArray[np.uint8]:
    """The pixels of an image file, uint8 [channels, H, W], without alpha, of the first frame.

    Args:
        data: the whole file, in one of the formats that docs/data.md lists.
        channels: 1 (grey) or 3 (RGB).
        image_size: resize the short side to round(8/7 image_size), then crop the centre; None: do neither.

    Raises:
        UnfitImageError: see the class; one line with the remedy.
        ValueError: the file cannot be read; one line with the reason.
    """
    with header(io.BytesIO(data)) as image:
        image.info.pop("transparency", None)  # else Pillow warns when it drops it; pixels are the same
        picture = image.convert(_MODES[channels])
    if image_size is not None:
        picture = _resize_and_crop(picture, image_size)
    pixels = np.asarray(picture, dtype=np.uint8)
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))


@contextmanager
def header(file: BinaryIO) -> Iterator[Image.Image]:
    """Open an image file and check its header; pixels are read later. Errors inside the context too: as `decode`."""
    try:
        head = file.read(_HEAD)
        file.seek(0)
        with Image.open(file) as image:
            _check_kind(image, head)
            yield image
    except UnfitImageError:
        raise
    except UnidentifiedImageError:  # its text contains a memory address
        if _jpeg_bits(file) not in (None, 8):
            raise _too_deep(_jpeg_bits(file)) from None
        raise ValueError("no image, or of a format that is not known") from None
    except Exception as error:  # decoders raise many kinds on broken files: SyntaxError, struct.error, OSError, ...
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file that decodes to the same uint8 [C, H, W], C 1 or 3."""
    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(
        file, "png"
    )
    return file.getvalue()


def _check_kind(image: Image.Image, head: bytes) -> None:
    """Check format, bits and colour mode by the file's header: Pillow reads 16 bits of some formats as 8."""
    if image.format not in _FORMATS:
        raise UnfitImageError(
            f"has the format {image.format}, whose bits per channel are not known; convert it to an 8-bit PNG"
        )
    bits = _bits(image, head)
    if bits > 8:
        raise _too_deep(bits)
    if image.mode not in _COLOURS:
        raise UnfitImageError(f"has the colour mode {image.mode}, which is not grey or RGB; convert it to RGB")


def _bits(image: Image.Image, head: bytes) -> int:
    """Bits per channel; 8 for formats that have no more."""
    if image.format == "PNG":
        return head[24]  # of IHDR, the first chunk
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        if set(tags.get(_TIFF_SAMPLE_FORMAT, (1,))) - {1, 4}:  # 1: unsigned, 4: undefined
            raise UnfitImageError("has signed or floating-point numbers for pixels; convert it to an 8-bit image")
        return int(max(tags.get(_TIFF_BITS, (1,))))
    if image.format == "PPM":
        if head[:2] in (b"P1", b"P4"):
            return 1
        if head[:2] == b"Pf":
            return 32
        numbers = _PPM_HEADER.match(head)
        if numbers is None:
            raise ValueError("its PPM header is not understood")
        return int(numbers[1]).bit_length()
    return 8


def _jpeg_bits(file: BinaryIO) -> int | None:
    """Bits per channel by a JPEG's frame header; None without one. Pillow does not recognise 12-bit JPEG at all."""
    file.seek(0)
    if file.read(2) != b"\xff\xd8":
        return None
    while len(segment := file.read(5)) == 5 and segment[0] == 0xFF:
        if 0xC0 <= segment[1] <= 0xCF and segment[1] not in (0xC4, 0xC8, 0xCC):
            return segment[4]
        file.seek(int.from_bytes(segment[2:4], "big") - 3, io.SEEK_CUR)
    return None


def _too_deep(bits: int | None) -> UnfitImageError:
    return UnfitImageError(f"has {bits} bits per channel, of which the lower are lost; convert it to an 8-bit image")


def _resize_and_crop(picture: Image.Image, image_size: int) -> Image.Image:
    """Short side to round(8/7 image_size) (256 for 224), then centre crop: equal to torchvision's transforms."""
    short = round(image_size * 8 / 7)
    width, height = picture.size
    smaller = min(width, height)
    width, height = int(short * width / smaller), int(short * height / smaller)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    return picture.crop((left, top, left + image_size, top + image_size))
