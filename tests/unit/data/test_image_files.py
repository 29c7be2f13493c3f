"""Pixels of one image: lossless to a file and back, and exact multiples of 1/255."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from drs_ray.data.image_files import decode, encode_png, unit_range


@given(st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_png_gives_back_every_bit(channels: int, height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (channels, height, width), np.uint8)
    assert np.array_equal(decode(encode_png(pixels), channels), pixels)


def test_all_256_values_survive_the_unit_range() -> None:
    values = np.arange(256, dtype=np.uint8)
    assert np.array_equal(unit_range(values) * np.float32(255), values.astype(np.float32))


def test_a_grey_image_as_rgb_has_three_equal_channels() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    assert np.array_equal(decode(encode_png(grey), 3), np.repeat(grey, 3, axis=0))


@pytest.mark.parametrize("data", [b"", b"not an image", encode_png(np.zeros((3, 8, 8), np.uint8))[:40]])
def test_broken_files_are_one_line(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        decode(data, 3)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_more_than_8_bits_are_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(file, "png")
    with pytest.raises(ValueError, match=r"has 16 bits per channel, .*; convert it"):
        decode(file.getvalue(), 1)
