"""`Subset`: images of another data set under new ids."""

from __future__ import annotations

import numpy as np
import pytest

from drs_ray.data.arrays import ArrayDataset
from drs_ray.data.split import Subset
from drs_ray.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 2, 2), dtype=np.uint8)
WHOLE = ArrayDataset("colours", "train", 3, PIXELS, np.array([0, 1, 2, 0, 1, 2]), ("a", "b", "c"))


def test_it_is_its_images_under_new_ids() -> None:
    some = Subset(WHOLE, [5, 0, 3])
    assert (len(some), some.image_shape, some.num_classes, some.classes) == (3, (3, 2, 2), 3, ("a", "b", "c"))
    assert some.labels(range(3)).tolist() == [2, 0, 0]
    assert [some.label(image_id) for image_id in range(3)] == [2, 0, 0]
    assert np.array_equal(some.images([2, 0]), WHOLE.images([3, 5]))
    assert np.array_equal(some.image(1), WHOLE.image(0))
    assert np.array_equal(some.pixels_of(0), PIXELS[5])


def test_its_digest_is_of_the_data_and_of_the_choice() -> None:
    other = ArrayDataset("colours", "train", 3, 255 - PIXELS, WHOLE.targets)
    choices = [Subset(WHOLE, [0, 1]), Subset(WHOLE, [1, 0]), Subset(WHOLE, [0]), Subset(other, [0, 1])]
    assert len({some.digest for some in choices}) == 4
    assert Subset(WHOLE, [0, 1]).digest == choices[0].digest


@pytest.mark.parametrize("image_id", [-1, 3])
def test_ids_beyond_it_are_refused(image_id: int) -> None:
    some = Subset(WHOLE, [5, 0, 3])
    for asked in (some.image, some.label, some.pixels_of):
        with pytest.raises(DataError, match=f"image {image_id}: colours train has the images 0..2"):
            asked(image_id)
    with pytest.raises(DataError):
        some.images([0, image_id])
