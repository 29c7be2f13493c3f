"""A model's file at a location: the same on a disk and in an S3 bucket, and one line of what is wrong there."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import torch

from drs_ray.errors import ClassifierError
from drs_ray.models.checkpoints import CheckpointMetadata, load_checkpoint, save_checkpoint
from drs_ray.models.files import check_writable, delete_file, read_file, read_if_there, write_file
from tests.servers import BUCKET


@pytest.fixture(params=["path", "file://", "s3://"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place without files: a directory, by either of its names, or a prefix of moto's bucket."""
    if request.param == "s3://":
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("moto_endpoint"))
        return f"s3://{BUCKET}/{uuid.uuid4().hex}"
    prefix = "" if request.param == "path" else "file://"
    return f"{prefix}{tmp_path}/deep/folder"


def test_what_is_written_is_read_until_it_is_deleted(folder: str) -> None:
    location = f"{folder}/a.safetensors"
    assert read_if_there(location) is None
    with pytest.raises(ClassifierError, match=r"a.safetensors: not found; check the path$"):
        read_file(location)
    check_writable(location)
    assert read_if_there(location) is None
    write_file(location, b"first")
    check_writable(location)
    assert read_file(location) == b"first"
    write_file(location, b"second")
    assert read_if_there(location) == b"second"
    delete_file(location)
    delete_file(location)
    assert read_if_there(location) is None


def test_checkpoints_are_written_and_read_there(folder: str) -> None:
    metadata = CheckpointMetadata("a", "none", "packed", (0,), 1.0, 2, (1, 2, 2), "mnist5k")
    module = torch.nn.Linear(2, 3)
    save_checkpoint(f"{folder}/a.safetensors", module, metadata)
    tensors, found = load_checkpoint(f"{folder}/a.safetensors")
    assert found == metadata
    assert torch.equal(tensors["weight"], module.weight.detach())


@pytest.mark.usefixtures("moto_endpoint")
def test_a_store_that_does_not_answer_for_a_file_is_no_missing_file(
    moto_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for missing, a finished checkpoint would be trained again."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    location = f"s3://no-such-bucket-{uuid.uuid4().hex}/a.safetensors"
    for attempt in (read_if_there, check_writable, lambda place: write_file(place, b"")):
        with pytest.raises(
            ClassifierError, match=r"^checkpoint s3://no-such-bucket-\w+/a.safetensors: cannot be"
        ) as caught:
            attempt(location)
        assert "\n" not in str(caught.value)
