"""Disks that are full, read-only, or lose their writer: no name without its bytes, and a resume completes the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from drs_ray import certify
from drs_ray.counts.schema import COUNTS_PREFIX
from drs_ray.errors import MissingObjectError, StoreError
from drs_ray.storage import LocalStore
from tests.support.runs import counts_digest, drs_ray, killed_at, resumed_line, run_config, run_data, write_config

ROOT = Path(__file__).parents[2]
NOBODY = 65534
MOUNTS = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
"""Runs a command that may mount; what it mounts is seen by itself alone and ends with it."""


def _python(program: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    return _run([sys.executable, "-c", program, *arguments], **options)


def _run(arguments: Sequence[str], **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT, **options)


@pytest.fixture
def may_mount(tmp_path):
    """Skips where this user may not mount anything, as in most containers."""
    try:
        tried = _run([*MOUNTS, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)])
    except FileNotFoundError:
        pytest.skip("needs the command unshare, to mount a small disk")
    if tried.returncode:
        pytest.skip(f"this user may not mount: {tried.stderr.strip()}")


# Stores puts of 20,000 bytes until one fails; prints the error, and then what a new store sees.
FILL = """
import os, sys
from drs_ray.errors import StoreError
from drs_ray.storage import LocalStore
store = LocalStore(sys.argv[1])
stored = {}
for number in range(1000):
    key, content = f"counts/{number:04}", os.urandom(20_000)
    try:
        store.put(key, content)
    except StoreError as error:
        print(f"{key}: {error.transient}: {error}")
        break
    stored[key] = content
again = LocalStore(sys.argv[1])
assert {item.key: again.get(item.key) for item in again.list()} == stored
assert not [name for name in os.listdir(f"{sys.argv[1]}/counts") if name.startswith(".")]
again.delete("counts/0000")
again.put(key, content)
assert again.get(key) == content
print(len(stored))
"""


def test_a_full_disk_for_real(tmp_path, may_mount):
    script = 'mount -t tmpfs -o size=256k tmpfs "$1" && exec "$2" -c "$3" "$1"'
    done = _run([*MOUNTS, "sh", "-ec", script, "sh", str(tmp_path), sys.executable, FILL])
    assert done.returncode == 0, done.stderr
    error, stored = done.stdout.splitlines()
    assert 8 <= int(stored) <= 12
    key = f"counts/{int(stored):04}"
    assert error == (
        f"{key}: False: {tmp_path}/{key}: no space left on the disk; free some space or choose another place"
    )


@pytest.mark.parametrize("method", ["put", "create"])
def test_a_write_that_the_kernel_cuts(tmp_path, method):
    # RLIMIT_FSIZE: the kernel takes the first 5,000 bytes and refuses the others, as a disk does that becomes full.
    store = LocalStore(tmp_path)
    store.put("old", b"old content")
    program = (
        "import resource, sys; from drs_ray.errors import StoreError; from drs_ray.storage import LocalStore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); store = LocalStore(sys.argv[1])\n"
        f"try: store.{method}(sys.argv[2], bytes(8000))\n"
        "except StoreError as error: sys.exit(str(error))"
    )
    for key in ("old", "counts/new"):
        if (method, key) == ("create", "old"):
            continue  # it may see the old object before it writes
        done = _python(program, str(tmp_path), key)
        assert done.stderr.strip().startswith(f"{tmp_path}/{key}: the file is larger than the disk or a limit allows; ")
        assert done.returncode == 1
    assert [(item.key, item.size) for item in store.list()] == [("old", 11)]
    assert store.get("old") == b"old content"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["old"]


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_in_one_line_and_resumes_when_there_is_space(tmp_path, may_mount):
    disk = tmp_path / "disk"
    disk.mkdir()
    undisturbed = certify(run_config(tmp_path / "undisturbed"))
    data = run_data(disk / "run")
    data["engine"]["images_per_unit"] = 1
    config = write_config(tmp_path / "config.yaml", data)
    # 24 parts of a page or more do not fit beside run.json. The pauses between tries are left out.
    impatient = (
        "from drs_ray.engine import inline_executor; inline_executor.RETRY_SECONDS = 0.0; "
        "from drs_ray.cli import main; main()"
    )
    script = """
        mount -t tmpfs -o size=36k tmpfs "$1"
        if "$3" -c "$4" certify "$2"; then exit 99; else echo "exit $?" >&2; fi
        find "$1" -type f >&2
        mount -o remount,size=10m "$1"
        "$3" -c "$4" certify "$2"
        cp -a "$1/run" "$5"
    """
    copy = tmp_path / "copy"
    done = _run(
        [*MOUNTS, "sh", "-ec", script, "sh", str(disk), str(config), sys.executable, impatient, str(copy)],
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    ended = lines.index("exit 1")
    assert lines[ended - 1].startswith("error: the last 20 units all failed, giving up; last cause: ")
    assert "no space left on the disk; free some space or choose another place" in lines[ended - 1]
    assert lines[ended - 1].endswith("run the same command to resume")
    assert "Traceback" not in done.stderr
    left = [line for line in lines if line.startswith(f"{disk}/run/")]
    assert not [line for line in left if Path(line).name.startswith(".")]
    parts = sum(line.startswith(f"{disk}/run/{COUNTS_PREFIX}") for line in left)
    assert 0 < parts < 20
    assert resumed_line(parts, 24 - parts) in done.stderr
    assert counts_digest(copy) == counts_digest(undisturbed.uri)


CHECK = """
import sys
from drs_ray.errors import StoreError
from drs_ray.storage import LocalStore
store = LocalStore(sys.argv[1])
assert [item.key for item in store.list()] == ["a"] and store.get("a") == b"1"
for use in (store.check_writable, lambda: store.put("a", b"2"), lambda: store.create("b", b"2")):
    try:
        use()
    except StoreError as error:
        print(f"{error.transient}: {error}")
assert store.get("a") == b"1"
"""


def test_a_file_system_that_is_read_only(tmp_path, may_mount):
    LocalStore(tmp_path).put("a", b"1")
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$2" -c "$3" "$1"'
    done = _run([*MOUNTS, "sh", "-ec", script, "sh", str(tmp_path), sys.executable, CHECK])
    assert done.returncode == 0, done.stderr
    _three_refusals(done.stdout, tmp_path, "the file system is read-only; choose a directory that you may write to")


def test_a_directory_that_one_may_not_write_to():
    with tempfile.TemporaryDirectory() as directory:  # not tmp_path, which is its owner's alone
        place = Path(directory, "run")
        LocalStore(place).put("a", b"1")
        Path(directory).chmod(0o755)
        place.chmod(0o555)
        # Root may write anywhere: be somebody else once all is imported.
        change = f"import os; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})" if os.geteuid() == 0 else ""
        done = _python(CHECK.replace("store = ", f"{change}\nstore = "), str(place))
        place.chmod(0o755)
    assert done.returncode == 0, done.stderr
    _three_refusals(done.stdout, place, "permission denied; choose a directory that you may write to")


def _three_refusals(output: str, place: Path, reason: str) -> None:
    lines = output.splitlines()
    assert len(lines) == 3
    for line, key in zip(lines, (".drs-ray-probe-", "a: ", "b: "), strict=True):
        assert line.startswith(f"False: {place}/{key}")
        assert line.endswith(reason)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "part", "nth", "parts"),
    [("replace", "/counts/", 4, 3), ("link", "/run.json", 1, None)],
    ids=["the 4th part", "run.json"],
)
def test_a_run_killed_between_write_and_rename_resumes(tmp_path, name, part, nth, parts):
    undisturbed = certify(run_config(tmp_path / "undisturbed"))
    data = run_data(tmp_path / "run")
    config = write_config(tmp_path / "config.yaml", data)
    killed = killed_at(name, part, nth, config)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    store = LocalStore(tmp_path / "run")
    (leftover,) = (tmp_path / "run").rglob(".*")
    assert leftover.stat().st_size > 0
    assert len(list(store.list(COUNTS_PREFIX))) == (parts or 0)
    if parts is None:
        with pytest.raises(MissingObjectError):
            store.get("run.json")
    with pytest.raises(StoreError, match="must be relative"):
        store.get(leftover.relative_to(tmp_path / "run").as_posix())
    done = drs_ray(["certify", str(config)], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    if parts is not None:
        assert resumed_line(parts, 8 - parts) in done.stderr
    assert counts_digest(store) == counts_digest(undisturbed.uri)
    assert leftover.exists()  # another host may be writing: nothing but its writer knows that it is stale
    assert not [item.key for item in store.list() if leftover.name in item.key]
