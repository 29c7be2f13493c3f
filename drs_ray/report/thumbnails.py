"""Small pictures of a run's images for its report. Needs the data set, not torch; without it there are no pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drs_ray.counts.run_record import RunRecord
from drs_ray.data.datasets import Dataset, open_dataset
from drs_ray.data.image_files import encode_png
from drs_ray.data.torchvision_sets import TORCHVISION_SETS
from drs_ray.errors import DataError, DrsError, counted
from drs_ray.report.image_table import Pictures

SIDE = 64
"""Pixels of a picture's longer side, at most. Smaller images are not resized."""
MOST_BYTES = 4_000_000
"""Largest size of all pictures of a report together, as text, so that the report stays small enough to send."""


def thumbnails(record: RunRecord, image_ids: Sequence[int]) -> Pictures:
    """Pictures of some images of a run, if this machine has the same data set and can open it.

    Args:
        record: the run's record.
        image_ids: ids of the run; the first images get pictures, up to `MOST_BYTES`.
    """
    chosen = record.config.dataset
    if chosen.name in TORCHVISION_SETS:
        return Pictures(
            note=f"No pictures: the original files of {chosen.name} are read with torch, which a report does not load; "
            "runs on packed images (drs-ray pack) have them"
        )
    try:
        return _pictures(_open(record), image_ids)
    except DrsError as error:
        return Pictures(note=f"No pictures: {error}")


def _open(record: RunRecord) -> Dataset:
    dataset = open_dataset(record.config.dataset, download=False)
    if dataset.digest != record.dataset.digest:
        raise DataError(
            f"what is here under the name of data set {record.config.dataset.name} is not what was certified"
        )
    return dataset


def _pictures(dataset: Dataset, image_ids: Sequence[int]) -> Pictures:
    uris: dict[int, str] = {}
    size = 0
    for image_id in image_ids:
        uri = _data_uri(dataset.encoded(image_id)[1])
        size += len(uri)
        if size > MOST_BYTES:
            return Pictures(uris, f"Pictures: of the first {counted(len(uris), 'image')} only, to keep this page small")
        uris[image_id] = uri
    return Pictures(uris)


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    """uint8 [C, H, W] -> data: URI; lossless for images that are not resized."""
    if max(pixels.shape[1:]) <= SIDE:
        return f"data:image/png;base64,{base64.b64encode(encode_png(pixels)).decode()}"
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
