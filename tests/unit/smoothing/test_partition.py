"""Partitions: disjoint, complete, exactly invertible, and blind to the other sub-image's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from drs_ray.errors import ConfigError
from drs_ray.smoothing.partition import Partition, make_partition
from tests.support.partitions import collect, merge

steady = settings(derandomize=True, deadline=None, database=None, max_examples=80)
LAYOUTS = ["packed", "masked"]
INTERLEAVES = [(1, 2), (2, 1), (2, 2), (3, 2), (4, 4)]
SIZES = [(28, 28), (32, 32), (4, 6), (5, 4), (4, 5), (7, 7), (1, 2), (2, 1), (1, 5), (5, 1), (3, 1), (224, 224)]


def numbered(height: int, width: int, channels: int = 3) -> torch.Tensor:
    """An image of which no two values are equal, none 0."""
    return torch.arange(1, channels * height * width + 1, dtype=torch.float64).reshape(channels, height, width)


def all_partitions(height: int, width: int, layouts: Sequence[str] = LAYOUTS) -> list[Partition]:
    names = ["none"] + (["checkerboard", "checkerboard-2024"] if height * width > 1 else [])
    steps = [(rows, columns) for rows, columns in INTERLEAVES if rows <= height and columns <= width]
    return [make_partition(name, height, width, layout) for name in names for layout in layouts] + [
        make_partition("interleave", height, width, layout, interleave) for interleave in steps for layout in layouts
    ]


@steady
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_disjoint_and_complete(height: int, width: int) -> None:
    for partition in all_partitions(height, width):
        pixels = torch.cat([partition.pixels(k) for k in range(len(partition))])
        assert sorted(pixels.tolist()) == list(range(height * width))
        for k in range(len(partition)):
            assert torch.all(partition.pixels(k).diff() > 0)
            cells = partition.parts[k].cells
            assert len(cells) == len(partition.pixels(k)) == len(cells.unique())
            assert int(cells.max()) < partition.parts[k].height * partition.parts[k].width


@steady
@given(height=st.integers(1, 20), width=st.integers(1, 20), channels=st.integers(1, 4), batch=st.integers(0, 3))
def test_exact_inverses(height: int, width: int, channels: int, batch: int) -> None:
    image = numbered(height, width, channels)
    images = image if batch == 0 else torch.stack([image + 1000 * b for b in range(batch)])
    for partition in all_partitions(height, width):
        values = [partition.extract(images, k) for k in range(len(partition))]
        assert torch.equal(merge(partition, values), images)
        for k, own in enumerate(values):
            arranged = partition.arrange(own, k)
            assert arranged.shape[-3:] == partition.layout_shape(k, channels)
            assert arranged.shape[:-3] == images.shape[:-3]
            assert torch.equal(collect(partition, arranged, k), own)
            # Every own value is there once, and nothing else.
            assert sorted(arranged[arranged != 0].tolist()) == sorted(own.flatten().tolist())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkerboard_owners(layout: str, size: tuple[int, int]) -> None:
    height, width = size
    partition = make_partition("checkerboard", height, width, layout)
    assert len(partition) == 2
    for k in range(2):
        rows, columns = partition.pixels(k) // width, partition.pixels(k) % width
        assert torch.all((rows + columns) % 2 == k)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", [*LAYOUTS, "filled"])
def test_checkerboard_2024_owners(layout: str, size: tuple[int, int]) -> None:
    """The first two columns of a row take the parity of the row, the others that of the next row."""
    height, width = size
    partition = make_partition("checkerboard-2024", height, width, layout)
    first = []
    for row in range(height):
        for column in range(width):
            parity = row % 2 if column < 2 else (row + 1) % 2
            if column % 2 == parity:
                first.append(row * width + column)
    assert partition.pixels(0).tolist() == first
    assert partition.pixels(1).tolist() == sorted(set(range(height * width)) - set(first))


def test_checkerboard_2024_is_the_published_mask() -> None:
    """Pixels in row-major order two by two, the row counter advanced after the first pixel of each row (of 32)."""
    first, counter = [], 0
    for pixel in range(0, 32 * 32, 2):
        first.append(pixel if counter % 2 == 0 else pixel + 1)
        if pixel % 32 == 0:
            counter += 1
    assert make_partition("checkerboard-2024", 32, 32, "packed").pixels(0).tolist() == first
    plain = set(make_partition("checkerboard", 32, 32, "packed").pixels(0).tolist())
    assert len(plain & set(first)) == 32  # of 512: the two first columns alone


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (4, 6), (5, 4), (224, 224)], ids=str)
def test_packed_halves_are_half_as_wide_and_full(size: tuple[int, int]) -> None:
    height, width = size
    partition = make_partition("checkerboard", height, width, "packed")
    for k in range(2):
        assert partition.layout_shape(k, 3) == (3, height, width // 2)
        assert partition.parts[k].is_dense
    whole = make_partition("none", height, width, "packed")
    assert whole.layout_shape(0, 1) == (1, height, width)
    image = numbered(height, width)
    assert torch.equal(whole.arrange(whole.extract(image, 0), 0), image)


def test_packed_pushes_rows_together() -> None:
    partition = make_partition("checkerboard", 2, 4, "packed")
    image = torch.tensor([[[1.0, 2, 3, 4], [5, 6, 7, 8]]])
    assert partition.arrange(partition.extract(image, 0), 0).tolist() == [[[1, 3], [6, 8]]]
    assert partition.arrange(partition.extract(image, 1), 1).tolist() == [[[2, 4], [5, 7]]]


def test_packed_odd_width_ends_short_rows_with_a_zero() -> None:
    partition = make_partition("checkerboard", 2, 3, "packed")
    image = torch.tensor([[[1.0, 2, 3], [4, 5, 6]]])
    assert partition.arrange(partition.extract(image, 0), 0).tolist() == [[[1, 3], [5, 0]]]
    assert partition.arrange(partition.extract(image, 1), 1).tolist() == [[[2, 0], [4, 6]]]
    assert not partition.parts[0].is_dense


def test_packed_leaves_out_rows_without_own_pixels() -> None:
    partition = make_partition("checkerboard", 5, 1, "packed")
    assert partition.layout_shape(0, 1) == (1, 3, 1)
    assert partition.layout_shape(1, 1) == (1, 2, 1)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masked_keeps_places_and_is_zero_elsewhere(size: tuple[int, int]) -> None:
    partition = make_partition("checkerboard", *size, "masked")
    image = numbered(*size)
    arranged = [partition.arrange(partition.extract(image, k), k) for k in range(2)]
    assert torch.equal(arranged[0] + arranged[1], image)
    assert torch.all((arranged[0] == 0) != (arranged[1] == 0))
    for k in range(2):
        assert partition.layout_shape(k, 3) == (3, *size)
        assert torch.equal(arranged[k].flatten(1)[:, partition.pixels(k)], image.flatten(1)[:, partition.pixels(k)])


def slowly_filled(image: torch.Tensor, own: set[int]) -> torch.Tensor:
    """Pixel by pixel: other pixels 0, then each own pixel plus the maximum of its 2x2 block of the masked image."""
    channels, height, width = image.shape
    masked = [
        [[float(image[c, i, j]) if i * width + j in own else 0.0 for j in range(width)] for i in range(height)]
        for c in range(channels)
    ]
    filled = torch.zeros_like(image)
    for c in range(channels):
        for pixel in own:
            i, j = divmod(pixel, width)
            rows = [r for r in (i // 2 * 2, i // 2 * 2 + 1) if r < height]
            columns = [k for k in (j // 2 * 2, j // 2 * 2 + 1) if k < width]
            filled[c, i, j] = masked[c][i][j] + max(masked[c][r][k] for r in rows for k in columns)
    return filled


@pytest.mark.parametrize("size", [(32, 32), (4, 6), (5, 4), (4, 5), (7, 7), (1, 2), (2, 1), (5, 1), (1, 5)], ids=str)
def test_filled_pixel_by_pixel(size: tuple[int, int]) -> None:
    image = torch.randn((3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for partition in all_partitions(*size, ["filled"]):
        for k in range(len(partition)):
            assert partition.layout_shape(k, 3) == (3, *size)
            assert not partition.parts[k].is_dense
            expected = slowly_filled(image, set(partition.pixels(k).tolist()))
            values = partition.extract(image, k)
            assert torch.equal(partition.arrange(values, k), expected)
            twice = partition.arrange(torch.stack([values, values + 1]), k)
            assert torch.equal(twice[0], expected)
            assert torch.equal(twice[1], slowly_filled(image + 1, set(partition.pixels(k).tolist())))


def test_filled_is_what_the_published_code_feeds_its_classifiers() -> None:
    """Noisy image * mask, max_pool2d(2), nearest back to 32x32, * mask, added; in float32, to the bit."""
    noisy = torch.rand(2, 3, 32, 32) + 0.5 * torch.randn(2, 3, 32, 32)
    partition = make_partition("checkerboard-2024", 32, 32, "filled")
    for k in range(2):
        mask = torch.zeros(32 * 32)
        mask[partition.pixels(k)] = 1
        masked = noisy * mask.reshape(32, 32)
        pooled = functional.interpolate(functional.max_pool2d(masked, 2), size=(32, 32), mode="nearest")
        expected = masked + pooled * mask.reshape(32, 32)
        assert torch.equal(partition.arrange(partition.extract(noisy, k), k), expected)


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (7, 5), (5, 8), (2, 2)], ids=str)
@pytest.mark.parametrize("interleave", [(1, 2), (2, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_interleave_owners(layout: str, interleave: tuple[int, int], size: tuple[int, int]) -> None:
    (height, width), (rows, columns) = size, interleave
    partition = make_partition("interleave", height, width, layout, interleave)
    assert len(partition) == rows * columns
    for k in range(rows * columns):
        mine = [r * width + c for r in range(height) for c in range(width) if r % rows * columns + c % columns == k]
        assert partition.pixels(k).tolist() == mine


def test_packed_quarters_are_half_as_high_and_half_as_wide() -> None:
    image = numbered(4, 6)
    partition = make_partition("interleave", 4, 6, "packed", (2, 2))
    for k, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert partition.layout_shape(k, 3) == (3, 2, 3)
        assert torch.equal(partition.arrange(partition.extract(image, k), k), image[:, row::2, column::2])


def test_packed_quarters_of_odd_sizes_are_dense_and_differ_by_a_row_and_a_column() -> None:
    image = numbered(5, 7)
    partition = make_partition("interleave", 5, 7, "packed", (2, 2))
    assert [partition.layout_shape(k, 1)[1:] for k in range(4)] == [(3, 4), (3, 3), (2, 4), (2, 3)]
    for k in range(4):
        assert partition.parts[k].is_dense
        assert torch.equal(partition.arrange(partition.extract(image, k), k), image[:, k // 2 :: 2, k % 2 :: 2])


@steady
@given(
    height=st.integers(1, 12),
    width=st.integers(2, 12),
    layout=st.sampled_from([*LAYOUTS, "filled"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_other_sub_image_never_shows(height: int, width: int, layout: str, seed: int) -> None:
    """The theorems need f^k to read x^k alone: change all other pixels, even to NaN, and nothing may move."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand((3, height, width), generator=generator)
    partitions = [p for p in all_partitions(height, width, [layout]) if len(p) > 1]
    for partition, k in [(p, k) for p in partitions for k in range(len(p))]:
        seen = partition.arrange(partition.extract(image, k), k)
        for other in (torch.rand(image.shape, generator=generator), torch.full_like(image, torch.nan)):
            changed = other.clone()
            changed.flatten(-2)[:, partition.pixels(k)] = image.flatten(-2)[:, partition.pixels(k)]
            assert torch.equal(partition.arrange(partition.extract(changed, k), k), seen)
        # and every own pixel does show
        moved = image + 1
        assert int((partition.arrange(partition.extract(moved, k), k) != seen).sum()) == 3 * len(partition.pixels(k))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("stripes", 4, 4, "packed"),
            "partition.name must be one of none, checkerboard, checkerboard-2024, interleave, got 'stripes'",
        ),
        (("interleave", 4, 4, "packed"), "must be (rows, columns) for the partition interleave and for no other, got"),
        (("checkerboard", 4, 4, "packed", (2, 2)), "for no other, got (2, 2) for checkerboard"),
        (("interleave", 4, 4, "packed", (1, 1)), "must make 2 to 64 sub-images (rows * columns), got (1, 1)"),
        (("interleave", 99, 4, "packed", (-2, -2)), "must make 2 to 64 sub-images (rows * columns), got (-2, -2)"),
        (("interleave", 99, 4, "packed", (65, 1)), "must make 2 to 64 sub-images (rows * columns), got (65, 1)"),
        (("interleave", 1, 5, "packed", (2, 2)), "has 4 sub-images but a 1x5 image gives pixels to only 2"),
        (("none", 4, 4, "sparse"), "partition.layout must be one of packed, masked, filled, got 'sparse'"),
        (("checkerboard", 1, 1, "packed"), "checkerboard has 2 sub-images but a 1x1 image gives pixels to only 1"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_partition(*arguments)
    assert message in str(error.value)


def test_images_of_another_size_are_refused() -> None:
    partition = make_partition("checkerboard", 4, 6, "packed")
    with pytest.raises(ConfigError, match=r"4x6 images, got \(6, 4\)"):
        partition.extract(torch.zeros(1, 6, 4), 0)
