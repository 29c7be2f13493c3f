"""The table of docs/data.md: each kind of image file is read as torchvision's ImageFolder does, or refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import default_loader

from drs_ray.data.datasets import load_dataset
from drs_ray.data.image_files import UnfitImageError, decode
from drs_ray.data.packing import pack_dataset
from drs_ray.errors import DataError
from drs_ray.storage import LocalStore

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 6, 4), np.uint8), "RGBA")


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png(bits: int, colour: int, channels: int) -> bytes:
    """One row of four pixels. Colour: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    row = bytes(range(1, 1 + (4 * channels * bits + 7) // 8))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 4, 1, bits, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"IEND", b""),
    )
    signed = (name + data for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in signed
    )


def tiff(bits: int, photometric: int, channels: int, **more: int) -> bytes:
    """One pixel, one strip, little-endian. more: sample_format, extra_samples."""
    deep = struct.pack(f"<{channels}H", *[bits] * channels)
    after = 8 + 2 + 12 * (9 + len(more)) + 4
    value = int.from_bytes(deep, "little") if len(deep) <= 4 else after
    tags = [
        *((256, 3, 1, 1), (257, 3, 1, 1), (258, 3, channels, value), (259, 3, 1, 1), (262, 3, 1, photometric)),
        *((273, 4, 1, after + len(deep)), (277, 3, 1, channels), (278, 3, 1, 1)),
        (279, 4, 1, channels * bits // 8),
        *((338, 3, 1, number) for key, number in more.items() if key == "extra_samples"),
        *((339, 3, 1, number) for key, number in more.items() if key == "sample_format"),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + deep + bytes(range(1, 1 + channels * bits // 8))


def twelve_bit_jpeg() -> bytes:
    data = bytearray(saved(PICTURE.convert("RGB"), "jpeg"))
    data[data.index(b"\xff\xc0") + 4] = 12
    return bytes(data)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[274] = 6  # Orientation: turn by 90 degrees to show it
    return saved(PICTURE.convert("RGB"), "jpeg", exif=exif)


AS_IMAGE_FOLDER = {
    "grey": saved(PICTURE.convert("L"), "png"),
    "grey and alpha": saved(PICTURE.convert("LA"), "png"),
    "RGB and alpha": saved(PICTURE, "png"),
    "RGB with a transparent colour": saved(PICTURE.convert("RGB"), "png", transparency=(1, 2, 3)),
    "palette": saved(PICTURE.convert("RGB").convert("P"), "png"),
    "palette with alpha": saved(PICTURE.convert("RGB").convert("P"), "png", transparency=bytes(range(256))),
    "black and white": saved(PICTURE.convert("1"), "png"),
    "grey of 2 bits": png(2, 0, 1),
    "CMYK JPEG": saved(PICTURE.convert("RGB").convert("CMYK"), "jpeg"),
    "CMYK TIFF": saved(PICTURE.convert("RGB").convert("CMYK"), "tiff"),
    "YCbCr TIFF": tiff(8, 6, 3),
    "TIFF with a fourth channel": tiff(8, 2, 4, extra_samples=0),
    "TIFF with alpha": saved(PICTURE, "tiff"),
    "TIFF with multiplied alpha": tiff(8, 2, 4, extra_samples=1),
    "EXIF rotation": rotated(),
    "animation": saved(PICTURE.convert("P"), "gif", save_all=True, append_images=[PICTURE.rotate(90).convert("P")]),
    "animated PNG": saved(PICTURE, "png", save_all=True, append_images=[PICTURE.rotate(180)]),
    "WebP": saved(PICTURE, "webp", lossless=True),
    "BMP": saved(PICTURE.convert("RGB"), "bmp"),
    "PPM": b"P6 1 1 255\n\1\2\3",
    "PPM of 4 bits": b"P6 1 1 15\n\1\2\3",
    "plain PPM": b"P3\n# by hand\n1 1\n255\n1 2 3\n",
    "PBM": b"P1 2 1\n0 1\n",
}


@pytest.mark.parametrize("kind", AS_IMAGE_FOLDER)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of the loader that we compare with
def test_what_is_read_is_read_as_image_folder_does(tmp_path: Path, kind: str) -> None:
    data = AS_IMAGE_FOLDER[kind]
    (tmp_path / "x.png").write_bytes(data)
    expected = np.asarray(default_loader(str(tmp_path / "x.png"))).transpose(2, 0, 1)
    assert np.array_equal(decode(data, 3), expected)


REFUSED = {
    "16-bit grey PNG": (png(16, 0, 1), "has 16 bits per channel"),
    "16-bit RGB PNG": (png(16, 2, 3), "has 16 bits per channel"),
    "16-bit grey and alpha PNG": (png(16, 4, 2), "has 16 bits per channel"),
    "16-bit RGBA PNG": (png(16, 6, 4), "has 16 bits per channel"),
    "16-bit PPM": (b"P6 1 1 65535\n\1\2\3\4\5\6", "has 16 bits per channel"),
    "10-bit PPM with comments": (b"P6 # a\n1 # b\n#c\n1\t1023\n\1\2\3\1\2\3", "has 10 bits per channel"),
    "9-bit plain PPM": (b"P3 1 1 256 1 2 3\n", "has 9 bits per channel"),
    "16-bit PGM": (b"P5 1 1 65535\n\1\2", "has 16 bits per channel"),
    "float PFM": (b"Pf 1 1 -1.0\n\0\0\0\0", "has 32 bits per channel"),
    "16-bit RGB TIFF": (tiff(16, 2, 3), "has 16 bits per channel"),
    "16-bit RGBA TIFF": (tiff(16, 2, 4, extra_samples=2), "has 16 bits per channel"),
    "16-bit grey TIFF": (tiff(16, 1, 1), "has 16 bits per channel"),
    "float TIFF": (tiff(32, 1, 1, sample_format=3), "has signed or floating-point numbers"),
    "signed TIFF": (tiff(8, 1, 1, sample_format=2), "has signed or floating-point numbers"),
    "LAB TIFF": (tiff(8, 8, 3), "has the colour mode LAB, which is not grey or RGB"),
    "12-bit JPEG": (twelve_bit_jpeg(), "has 12 bits per channel"),
    "JPEG 2000": (
        saved(PICTURE.convert("RGB"), "jpeg2000"),
        "has the format JPEG2000, whose bits per channel are not known",
    ),
    "AVIF": (saved(PICTURE.convert("RGB"), "avif"), "has the format AVIF, whose bits per channel are not known"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_says_why(kind: str) -> None:
    data, message = REFUSED[kind]
    with pytest.raises(UnfitImageError, match=f"{message}.*; convert it to ") as caught:
        decode(data, 3)
    assert "\n" not in str(caught.value)


def test_the_files_of_this_test_are_images() -> None:
    """But for what Pillow does not read at all: what is refused would otherwise be refused for being broken."""
    for kind, (data, _) in REFUSED.items():
        if kind != "12-bit JPEG":
            with Image.open(io.BytesIO(data)) as image:
                image.load()


@pytest.mark.parametrize("kind", ["16-bit RGB PNG", "16-bit PPM", "16-bit RGB TIFF"])
def test_certify_sees_it_beforehand_and_pack_refuses_it(tmp_path: Path, kind: str) -> None:
    for name in ("cat", "dog"):
        file = tmp_path / "test" / name / f"{name}.png"
        file.parent.mkdir(parents=True)
        PICTURE.convert("RGB").save(file)
    file.write_bytes(REFUSED[kind][0])
    dataset = load_dataset("folder", root=tmp_path, image_size=4)
    dataset.check([0])
    message = r"image .*/dog/dog.png: has 16 bits per channel, .*; convert it to an 8-bit image$"
    with pytest.raises(DataError, match=message):
        dataset.check([0, 1])
    with pytest.raises(DataError, match=message):
        pack_dataset(dataset, 4, LocalStore(tmp_path / "out"), lambda done: None)
