"""A directory as a store."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from drs_ray.errors import ConfigError, MissingObjectError
from drs_ray.storage.base import PLACES, StoredObject, check_key, create_once, try_writing
from drs_ray.storage.reasons import os_errors


class LocalStore:
    """A directory, created on demand. Objects are files. A name appears only after its bytes are on the disk."""

    def __init__(self, path: str | Path) -> None:
        if not str(path) or "\0" in str(path):
            raise ConfigError(f"{str(path)!r}: is no directory's name; {PLACES}")
        self._root = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - resolve() would follow links
        self.uri = str(self._root)

    def get(self, key: str) -> bytes:
        """See `Store.get`."""
        return self.get_range(key, 0, -1)

    def get_range(self, key: str, first: int, size: int) -> bytes:
        """See `Store.get_range`."""
        path = self._path(key)
        with os_errors(path):
            try:
                with path.open("rb") as file:
                    file.seek(first)
                    return file.read(size)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise MissingObjectError(f"{path}: not found; check the path") from None

    def put(self, key: str, data: bytes) -> None:
        """See `Store.put`."""
        self._write(self._path(key), data, os.replace)

    def create(self, key: str, data: bytes) -> bytes:
        """See `Store.create`."""
        path = self._path(key)
        return create_once(lambda: self._write(path, data, os.link), lambda: self.get(key), data, str(path))

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """See `Store.list`."""
        if prefix:
            check_key(prefix.rstrip("/"), self.uri)
        found = []
        with os_errors(self._root):
            top = self._root / prefix.rpartition("/")[0]
            for directory, names, files in os.walk(top, onerror=self._unlistable):
                here = Path(directory).relative_to(self._root).as_posix()
                base = "" if here == "." else f"{here}/"
                names[:] = [name for name in names if not name.startswith(".") and _may_hold(f"{base}{name}/", prefix)]
                for name in files:
                    key = base + name
                    if key.startswith(prefix) and not name.startswith("."):
                        with suppress(FileNotFoundError):  # deleted since it was listed
                            status = os.stat(f"{directory}/{name}")  # noqa: PTH116 - Path objects cost more than the rest
                            found.append(StoredObject(key, status.st_size, status.st_mtime))
        return iter(sorted(found))

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        path = self._path(key)
        with os_errors(path), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()

    def check_writable(self) -> None:
        """See `Store.check_writable`."""
        with os_errors(self._root):
            made_here = _missing_directories(self._root)
        try:
            try_writing(self)
        finally:
            for directory in made_here:
                with suppress(OSError):  # another process has written a file there
                    directory.rmdir()

    def _path(self, key: str) -> Path:
        return self._root / check_key(key, self.uri)

    def _unlistable(self, error: OSError) -> None:
        # A missing directory holds no objects. Without this function, os.walk would hide all other errors too.
        if isinstance(error, FileNotFoundError):
            return
        if isinstance(error, NotADirectoryError) and self._root.is_dir():
            return
        raise error

    @staticmethod
    def _write(path: Path, data: bytes, commit: Callable[[Path, Path], None]) -> bool:
        """Writes `data` to a temporary file beside `path` and commits it; False if the name exists (os.link)."""
        with os_errors(path):
            descriptor, temporary = _temporary_file(path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(descriptor)
                try:
                    commit(temporary, path)
                except FileExistsError:
                    return False
            finally:
                with suppress(OSError):  # os.replace has moved it, or an earlier error must be raised
                    temporary.unlink()
            _sync_directory(path.parent)
        return True


def _may_hold(directory: str, prefix: str) -> bool:
    """Whether keys below a directory can start with the prefix."""
    return directory.startswith(prefix) or prefix.startswith(directory)


def _missing_directories(directory: Path) -> list[Path]:
    """`directory` and those of its parents that do not exist, innermost first."""
    return [path for path in (directory, *directory.parents) if not path.exists()]


def _temporary_file(directory: Path) -> tuple[int, Path]:
    path = directory / f".{secrets.token_hex(8)}.tmp"
    for _ in range(10):
        with suppress(FileNotFoundError):  # another process's check_writable has just removed a directory
            for missing in reversed(_missing_directories(directory)):
                missing.mkdir(exist_ok=True)
                _sync_directory(missing.parent)
            # Not tempfile.mkstemp: its mode 0600 would prevent colleagues from reading the results.
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), path
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))


def _sync_directory(directory: Path) -> None:
    """Writes the names in `directory` to the disk, so that they survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not supported by some network file systems
            raise
    finally:
        os.close(descriptor)
