"""Pictures for the report: the run's own images, small, or a note that says why there are none."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drs_ray.counts.run_record import RunRecord
from drs_ray.data.datasets import load_dataset
from drs_ray.report import thumbnails as module
from drs_ray.report.thumbnails import SIDE, thumbnails
from tests.unit.counts.factories import make_record


def decoded(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def folder(root: Path, side: int, images: int = 3) -> RunRecord:
    for name in ("cat", "dog"):
        (root / "test" / name).mkdir(parents=True)
    for index in range(images):
        pixels = np.random.default_rng(index).integers(0, 256, (side, 2 * side, 3), np.uint8)
        Image.fromarray(pixels).save(root / "test" / "cat" / f"{index}.png")
    digest = load_dataset("folder", root).digest
    return make_record(images, name="folder", root=str(root), digest=digest)


def test_small_images_are_shown_pixel_for_pixel() -> None:
    data = load_dataset("mnist5k")
    found = thumbnails(make_record(digest=data.digest), [3, 17])
    assert list(found.uris) == [3, 17]
    assert found.note == ""
    assert np.array_equal(np.asarray(decoded(found.uris[17])), (data.image(17)[0] * 255).round().astype(np.uint8))


def test_large_images_are_shrunk_in_proportion(tmp_path: Path) -> None:
    found = thumbnails(folder(tmp_path, side=100), [1])
    assert decoded(found.uris[1]).size == (SIDE, SIDE // 2)


def test_what_was_not_certified_is_not_shown(tmp_path: Path) -> None:
    record = folder(tmp_path, side=8)
    Image.new("RGB", (16, 8)).save(tmp_path / "test" / "cat" / "3.png")
    found = thumbnails(record, [0])
    assert (dict(found.uris), "not what was certified" in found.note) == ({}, True)


def test_data_that_is_not_here_is_a_note(tmp_path: Path) -> None:
    found = thumbnails(make_record(name="folder", root=str(tmp_path / "gone")), [0])
    assert found.uris == {}
    assert found.note.startswith("No pictures: ")
    assert "gone" in found.note


def test_pictures_end_where_the_page_would_grow_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = folder(tmp_path, side=40)
    size = len(thumbnails(record, [0]).uris[0])
    monkeypatch.setattr(module, "MOST_BYTES", 2 * size + 100)
    found = thumbnails(record, [0, 1, 2])
    assert list(found.uris) == [0, 1]
    assert "the first 2 images only" in found.note


def test_torch_is_not_loaded_for_them(tmp_path: Path) -> None:
    code = (
        "import sys; from tests.unit.counts.factories import make_record; "
        "from drs_ray.report.thumbnails import thumbnails; "
        f"found = thumbnails(make_record(name='cifar10', root={str(tmp_path)!r}), [0]); "
        "thumbnails(make_record(), [0]); "
        "sys.exit('torch' in sys.modules or found.uris or 'drs-ray pack' not in found.note)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
