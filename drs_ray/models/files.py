"""Files of models by location, a local path or an s3:// URI; a file is written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drs_ray.errors import ClassifierError, ConfigError, MissingObjectError, StoreError
from drs_ray.storage import open_place_of


def read_file(location: str, remedy: str = "check the path") -> bytes:
    """The bytes at a location.

    Raises:
        ClassifierError: there is no such file (the message ends with `remedy`), it cannot be read, or it is a web page
            or a Git LFS pointer.
    """
    data = read_if_there(location)
    if data is None:
        raise ClassifierError(f"checkpoint {location}: not found; {remedy}")
    _check_content(location, data)
    return data


def _check_content(location: str, data: bytes) -> None:
    """Refuse a Git LFS pointer or a web page in place of a checkpoint."""
    start = data[:512].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise ClassifierError(
            f"checkpoint {location}: is a Git LFS pointer, which stands for the file and is not it; run `git lfs pull` "
            "where it was cloned"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ClassifierError(
            f"checkpoint {location}: is a web page ({'XML' if start.startswith(b'<?xml') else 'HTML'}), which a server "
            "sent in place of the file; download the file itself"
        )


def read_if_there(location: str) -> bytes | None:
    """The bytes at a location; None if there is no such file.

    Raises:
        ClassifierError: it cannot be read, or the store does not tell whether it exists.
    """
    with _errors(location, "read"):
        store, name = open_place_of(location)
        try:
            return store.get(name)
        except MissingObjectError:
            return None


def read_json(location: str) -> dict[str, Any] | None:
    """The JSON object at a location; None if there is no such file.

    Raises:
        ClassifierError: it cannot be read, or is no JSON object.
    """
    data = read_if_there(location)
    if data is None:
        return None
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ClassifierError(f"{location}: no JSON ({error})") from error
    if not isinstance(found, dict):
        raise ClassifierError(f"{location}: must hold a JSON object")
    return found


def is_there(location: str) -> bool:
    """Whether there is a file at a location.

    Raises:
        ClassifierError: the store does not tell.
    """
    with _errors(location, "read"):
        store, name = open_place_of(location)
        try:
            store.get_range(name, 0, 1)
        except MissingObjectError:
            return False
    return True


def write_file(location: str, data: bytes) -> None:
    """Write a file so that readers never see a part of it. Directories are created.

    Raises:
        ClassifierError: if it cannot be written; an old file is then unchanged.
    """
    with _errors(location, "written"):
        store, name = open_place_of(location)
        store.put(name, data)


def delete_file(location: str) -> None:
    """Delete a file, which may be missing.

    Raises:
        ClassifierError: if it cannot be deleted.
    """
    with _errors(location, "deleted"):
        store, name = open_place_of(location)
        store.delete(name)


def check_writable(location: str) -> None:
    """Write, read and delete a test file beside the location.

    Raises:
        ClassifierError: if a file cannot be written there.
    """
    with _errors(location, "written"):
        store, name = open_place_of(location)
        if Path(store.uri, name).is_dir():
            raise StoreError("a directory has that name; choose another")
        store.check_writable()


@contextmanager
def _errors(location: str, done: str) -> Iterator[None]:
    try:
        yield
    except (StoreError, ConfigError) as error:
        raise ClassifierError(f"checkpoint {location}: cannot be {done}: {error}") from error
