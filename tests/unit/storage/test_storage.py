"""The stores: one body of tests over a directory, moto and a real S3 server; then what each does when things fail."""

from __future__ import annotations

import errno
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    FlexibleChecksumError,
    InvalidConfigError,
    NoCredentialsError,
    ReadTimeoutError,
    SSLError,
)
from botocore.httpsession import URLLib3Session
from botocore.parsers import ResponseParserError

from drs_ray.errors import ConfigError, MissingObjectError, StoreError
from drs_ray.storage import LocalStore, S3Store, Store, StoredObject, open_store
from tests.servers import BUCKET, S3Server
from tests.support.fault_proxy import Fault, FaultProxy, Rule

OpenStore = Callable[[str], Store]


@pytest.fixture(params=["local", "moto", pytest.param("seaweed", marks=pytest.mark.s3)])
def open_at(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Opens a store of the kind under test, at a place of this test's own with the name that is given."""
    if request.param == "local":
        return lambda name: open_store(f"{tmp_path}/{name}")
    if request.param == "moto":
        endpoint = request.getfixturevalue("moto_endpoint")
    else:
        endpoint = request.getfixturevalue("seaweed").endpoint
    place = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    return lambda name: open_store(f"{place}/{name}", endpoint)


@pytest.fixture
def store(open_at: OpenStore) -> Store:
    return open_at("run")


@pytest.fixture
def moto_store(moto_endpoint: str) -> S3Store:
    return S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}", moto_endpoint)


def keys(store: Store, prefix: str = "") -> list[str]:
    return [found.key for found in store.list(prefix)]


def files_below(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


# One body for all stores


@pytest.mark.parametrize("data", [b"", b"votes", bytes(range(256)) * 4096], ids=["empty", "short", "1 MiB"])
def test_round_trip(store: Store, data: bytes) -> None:
    store.put("counts/part-0.parquet", data)
    assert store.get("counts/part-0.parquet") == data


def test_a_range_is_that_part_of_the_object(store: Store) -> None:
    store.put("a", bytes(range(100)))
    assert store.get_range("a", 10, 5) == bytes(range(10, 15))
    assert store.get_range("a", 0, 100) == bytes(range(100))
    assert store.get_range("a", 97, 10) == bytes(range(97, 100))
    assert store.get_range("a", 100, 1) == store.get_range("a", 200, 10) == store.get_range("a", 3, 0) == b""
    with pytest.raises(MissingObjectError, match="nothing: not found"):
        store.get_range("nothing", 0, 10)


def test_put_replaces(store: Store) -> None:
    store.put("run.json", b"a long first version")
    store.put("run.json", b"second")
    assert store.get("run.json") == b"second"
    assert keys(store) == ["run.json"]


def test_create_keeps_the_first_content(store: Store) -> None:
    assert store.create("run.json", b"first") == b"first"
    assert store.create("run.json", b"second") == b"first"
    assert store.get("run.json") == b"first"
    assert keys(store) == ["run.json"]


def test_create_with_the_same_content_is_a_resume(store: Store) -> None:
    assert store.create("run.json", b"same") == b"same"
    assert store.create("run.json", b"same") == b"same"


def test_create_after_delete(store: Store) -> None:
    store.create("run.json", b"first")
    store.delete("run.json")
    assert store.create("run.json", b"second") == b"second"


def test_create_raced_by_threads_has_one_winner(store: Store) -> None:
    for round_number in range(3):
        key = f"race/{round_number}/run.json"
        barrier = threading.Barrier(8)

        def create(content: bytes, key: str = key, barrier: threading.Barrier = barrier) -> bytes:
            barrier.wait(30)
            return store.create(key, content)

        contents = [f"driver {number}".encode() for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            seen = list(pool.map(create, contents))
        assert set(seen) == {store.get(key)}
        assert seen[0] in contents
        assert keys(store, f"race/{round_number}/") == [key]


def test_list_tells_key_size_and_time(store: Store) -> None:
    before = time.time()
    store.put("counts/part-0.parquet", b"12345")
    (found,) = store.list()
    assert isinstance(found, StoredObject)
    assert (found.key, found.size) == ("counts/part-0.parquet", 5)
    assert before - 2 <= found.modified <= time.time() + 2  # S3 tells whole seconds


def test_list_is_sorted_by_key_whatever_the_servers_order(store: Store) -> None:
    # A directory tree gives a/b before a-b; so does SeaweedFS.
    names = ["a/b", "a-b", "a.b", "a0", "B", "z/10", "z/9", "é"]
    for name in names:
        store.put(name, b"")
    assert keys(store) == sorted(names) == ["B", "a-b", "a.b", "a/b", "a0", "z/10", "z/9", "é"]


def test_list_goes_on_after_a_page_of_1000(store: Store) -> None:
    names = [f"counts/{number % 3}/part-{number:05}" for number in range(1003)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: store.put(name, b"x"), names))
    assert keys(store) == sorted(names)
    assert keys(store, "counts/1/") == sorted(name for name in names if name.startswith("counts/1/"))


def test_list_by_prefix_takes_any_string(store: Store) -> None:
    for name in ["run.json", "counts/k0-b0", "counts/k0-b1", "counts/k1-b0", "counts2/k0-b0"]:
        store.put(name, b"")
    assert keys(store, "counts/") == ["counts/k0-b0", "counts/k0-b1", "counts/k1-b0"]
    assert keys(store, "counts/k0") == ["counts/k0-b0", "counts/k0-b1"]
    assert keys(store, "counts") == ["counts/k0-b0", "counts/k0-b1", "counts/k1-b0", "counts2/k0-b0"]
    assert keys(store, "run.json") == ["run.json"]
    assert keys(store, "run.json/") == []
    assert keys(store, "nothing/here/") == []


def test_stores_side_by_side_do_not_see_each_other(open_at: OpenStore) -> None:
    open_at("run").put("run.json", b"1")
    open_at("run-2").put("run.json", b"2")
    open_at("run/inner").put("run.json", b"3")
    assert keys(open_at("run")) == ["inner/run.json", "run.json"]
    assert keys(open_at("run-2")) == ["run.json"]
    assert open_at("run").get("inner/run.json") == b"3"


def test_an_empty_place_lists_nothing_and_is_not_made_by_reading(store: Store) -> None:
    assert keys(store) == []
    with pytest.raises(MissingObjectError):
        store.get("run.json")
    store.delete("run.json")
    assert not Path(store.uri).exists()


def test_delete(store: Store) -> None:
    store.put("a/x", b"1")
    store.put("a/y", b"2")
    store.delete("a/x")
    store.delete("a/x")
    assert keys(store) == ["a/y"]
    with pytest.raises(MissingObjectError):
        store.get("a/x")


@pytest.mark.parametrize("key", ["missing.json", "a/missing", "a", "a/x/missing"])
def test_get_missing_names_the_object(store: Store, key: str) -> None:
    store.put("a/x", b"1")
    with pytest.raises(MissingObjectError) as raised:
        store.get(key)
    assert f"{store.uri}/{key}: not found" in str(raised.value)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "../outside",
        "a/../../outside",
        "a/./b",
        "a//b",
        "a/",
        ".hidden",
        "a/.hidden",
        "a\\b",
        "a\0b",
        "a\nb",
        ".drs-ray-probe-/../../outside",
    ],
)
def test_bad_keys_are_refused_by_every_method(store: Store, key: str) -> None:
    for use in (store.get, store.delete, lambda bad: store.put(bad, b""), lambda bad: store.create(bad, b"")):
        with pytest.raises(StoreError, match="must be relative"):
            use(key)
    if key and key != "a/":  # "" and "a/" are prefixes
        with pytest.raises(StoreError, match="must be relative"):
            store.list(key)


@pytest.mark.parametrize(
    "name", ["with space", "ünï/cødé", "a+b=c&d,e;f@g:h", "100%25", "what?#x", "~tilde", "sigma=0.50", "(1)'s"]
)
def test_unusual_but_legal_prefixes_and_keys(open_at: OpenStore, name: str) -> None:
    store = open_at(name)
    assert store.uri.endswith(f"/{name}")
    key = f"{name}/part 0+é%20.parquet"
    assert store.create(key, b"1") == b"1"
    assert store.get(key) == b"1"
    assert keys(store) == keys(store, f"{name}/part") == [key]
    assert keys(open_at("")) == [f"{name}/{key}"]
    store.delete(key)
    assert keys(store) == []


def test_uri_is_normalised(open_at: OpenStore) -> None:
    assert open_at("a//b/").uri == open_at("a/b").uri
    assert not open_at("a/").uri.endswith("/")


def test_check_writable_leaves_nothing_behind(open_at: OpenStore) -> None:
    store = open_at("new/deep/place")
    store.check_writable()
    assert keys(open_at("")) == []
    assert not Path(store.uri).parent.parent.exists()
    store.put("run.json", b"1")
    store.check_writable()
    assert keys(store) == ["run.json"]


# open_store


def test_open_store_takes_paths_and_file_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert open_store("runs/../out").uri == f"{tmp_path}/out"
    assert open_store("~/runs").uri == "/home/someone/runs"
    assert open_store(f"file://{tmp_path}/my%20run?#").uri == f"{tmp_path}/my run?#"
    assert open_store("file://localhost/data").uri == "/data"
    assert open_store("a:b/c").uri == f"{tmp_path}/a:b/c"
    assert isinstance(open_store("."), LocalStore)


def test_open_store_takes_buckets_without_a_prefix() -> None:
    store = open_store("s3://bucket")
    assert isinstance(store, S3Store)
    assert store.uri == open_store("s3://bucket/").uri == "s3://bucket"


@pytest.mark.parametrize(
    "uri",
    ["gs://bucket/run", "s3a://bucket/run", "file://host/run", "s3:/bucket/run", "file:run", "S3://bucket", "", "a\0b"],
)
def test_open_store_refuses_other_places_with_the_remedy(uri: str) -> None:
    with pytest.raises(ConfigError, match="allowed: a directory, file:///directory or s3://bucket/prefix"):
        open_store(uri)


@pytest.mark.parametrize("uri", ["s3://", "s3:///run", "s3://bucket/a/../b", "s3://bucket/./a"])
def test_open_store_refuses_s3_uris_without_bucket_or_with_dots(uri: str) -> None:
    with pytest.raises(ConfigError, match="is not s3://bucket/prefix"):
        open_store(uri)


@pytest.mark.parametrize("endpoint", ["localhost:9000", "ftp://localhost", "http://"])
def test_open_store_refuses_a_bad_endpoint(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="must start with http"):
        open_store("s3://bucket", endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ConfigError, match="must start with http"):
        open_store("s3://bucket")


def test_an_endpoint_that_boto3_refuses_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"check the endpoint_url") as raised:
        open_store("s3://bucket", "http://user:hunter2@minio_server:9000").check_writable()
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "uri", ["s3://key:sec/ret@bucket/run", "s3://key:secret@bucket", "gs://key:sec/ret@bucket/run"]
)
def test_a_secret_in_a_uri_is_not_repeated(uri: str) -> None:
    with pytest.raises(ConfigError) as raised:
        open_store(uri)
    assert "sec" not in str(raised.value)


def test_importing_the_module_loads_no_boto3() -> None:
    loaded = "import sys, drs_ray.storage; sys.exit(any(m.startswith('boto') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0


# Local failures


def test_leftover_temporary_files_are_invisible(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("counts/a", b"1")
    Path(tmp_path, "counts", ".0123456789abcdef.tmp").write_bytes(b"half")
    Path(tmp_path, ".snapshot").mkdir()
    Path(tmp_path, ".snapshot", "a").write_bytes(b"old")
    assert keys(store) == keys(store, "counts/") == ["counts/a"]
    with pytest.raises(StoreError):
        store.get(".snapshot/a")


@pytest.mark.parametrize(("method", "commit"), [("put", "replace"), ("create", "link")])
def test_an_error_before_the_commit_leaves_the_old_object_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, commit: str
) -> None:
    store = LocalStore(tmp_path)
    store.put("old", b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, commit, interrupted)
    for key in ("old", "new"):
        with pytest.raises(KeyboardInterrupt):
            getattr(store, method)(key, b"new content")
    assert files_below(tmp_path) == ["old"]
    assert store.get("old") == b"old"


@pytest.mark.parametrize(("method", "commit"), [("put", "replace"), ("create", "link")])
def test_a_killed_writer_leaves_no_readable_half(tmp_path: Path, method: str, commit: str) -> None:
    program = (
        "import os, signal, sys; from drs_ray.storage import LocalStore;"
        f"os.{commit} = lambda *_: os.kill(os.getpid(), signal.SIGKILL);"
        f"LocalStore(sys.argv[1]).{method}('counts/a', b'content')"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (leftover,) = files_below(tmp_path)
    assert leftover.startswith(".")
    store = LocalStore(tmp_path)
    assert keys(store) == []
    with pytest.raises(MissingObjectError):
        store.get("counts/a")
    assert store.create("counts/a", b"again") == b"again"


def test_the_bytes_are_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(descriptor: int) -> None:
        steps.append("directory" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file")
        fsync(descriptor)

    def traced_replace(source: Path, target: Path) -> None:
        steps.append(f"replace {source.stat().st_size}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    LocalStore(tmp_path).put("run.json", b"12345")
    assert steps == ["file", "replace 5", "directory"]


def test_files_get_the_users_usual_permissions(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        LocalStore(tmp_path).put("run.json", b"1")
        LocalStore(tmp_path).create("run2.json", b"1")
    finally:
        os.umask(old)
    assert {Path(tmp_path, name).stat().st_mode & 0o777 for name in ("run.json", "run2.json")} == {0o644}


@pytest.mark.parametrize("method", ["put", "create"])
def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    store = LocalStore(tmp_path)
    store.put("a", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=f"^{tmp_path}/b: no space left on the disk; free some space or choose"):
        getattr(store, method)("b", b"1")
    assert files_below(tmp_path) == ["a"]


def test_a_path_below_a_file_is_not_writable(tmp_path: Path) -> None:
    Path(tmp_path, "file").write_bytes(b"precious")
    for place in ("file", "file/run", "file/deep/run"):
        store = LocalStore(tmp_path / place)
        for use in (store.check_writable, lambda store=store: store.put("run.json", b"1")):
            with pytest.raises(StoreError, match=r"a part of this path is a file; choose another place"):
                use()
        with pytest.raises(MissingObjectError):
            store.get("run.json")
    with pytest.raises(StoreError, match="a part of this path is a file"):
        LocalStore(tmp_path / "file").list()
    assert files_below(tmp_path) == ["file"]
    assert Path(tmp_path, "file").read_bytes() == b"precious"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_proc_is_not_writable() -> None:
    with pytest.raises(StoreError, match=r"^/proc/drs-ray/run.*choose another place"):
        LocalStore("/proc/drs-ray/run").check_writable()


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "larger than the disk or a limit"),
        (errno.EIO, "put/output"),
    ],
)
def test_failures_of_the_disk_name_reason_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def broken(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", broken)
    with pytest.raises(StoreError, match=f"{reason}.*; (choose|free|check|raise)") as raised:
        LocalStore(tmp_path).check_writable()
    assert str(raised.value).startswith(str(tmp_path))
    assert not raised.value.transient


def test_check_writable_needs_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(StoreError, match="hard links are needed"):
        LocalStore(tmp_path / "run").check_writable()
    assert list(tmp_path.iterdir()) == []


def test_many_processes_checking_one_new_place_do_not_disturb_each_other(tmp_path: Path) -> None:
    # Each removes the directory it made, perhaps while another is about to write into it.
    def check_and_put(number: int) -> None:
        store = LocalStore(tmp_path / "a" / "b")
        for _ in range(20):
            store.check_writable()
        store.put(f"{number}", b"1")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check_and_put, range(4)))
    assert keys(LocalStore(tmp_path)) == [f"a/b/{number}" for number in range(4)]


def test_a_directory_that_is_removed_under_a_writer_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path / "run")
    removed: list[Path] = []
    real_open = os.open

    def remove_first(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT and not removed:
            removed.append(path.parent)
            path.parent.rmdir()
        return real_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", remove_first)
    store.put("run.json", b"1")
    assert removed == [tmp_path / "run"]
    assert store.get("run.json") == b"1"


def test_a_file_that_goes_away_during_a_listing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    store.put("a", b"1")
    store.put("b", b"1")
    real_stat = os.stat

    def deleted_first(path: str | Path, **options: bool) -> os.stat_result:
        if Path(path).name == "a":
            Path(path).unlink(missing_ok=True)
        return real_stat(path, **options)

    monkeypatch.setattr(os, "stat", deleted_first)
    assert keys(store) == ["b"]


def test_a_create_that_never_settles_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(tmp_path, "run.json").mkdir()  # there, but no object
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    with pytest.raises(StoreError, match="neither there nor to be created"):
        LocalStore(tmp_path).create("run.json", b"1")
    assert len(set(naps)) == len(naps) == 6
    assert sum(naps) < 10


# S3: settings and failures


@pytest.mark.parametrize("way", ["argument", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_bucket_is_in_the_path_at_an_endpoint(
    moto_endpoint: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    # A name of an S3-compatible server has no sub-domains for buckets. No request is sent.
    endpoint = "http://minio.example:9000"
    if way != "argument":
        monkeypatch.setenv(way, endpoint)
    store = S3Store("s3://bucket/run", endpoint if way == "argument" else None)
    url = store.client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "run/a"})
    assert url.startswith(f"{endpoint}/bucket/run/a?")


def test_no_region_is_needed(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    open_store(f"s3://{BUCKET}/no-region", moto_endpoint).check_writable()


def test_the_endpoint_of_the_environment_is_used(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    open_store(f"s3://{BUCKET}/{uuid.uuid4().hex}").check_writable()


def test_no_credentials(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_store(f"s3://{BUCKET}/run", moto_endpoint)
    for use in (store.check_writable, lambda: store.put("a", b""), lambda: store.get("a"), lambda: store.list()):
        with pytest.raises(StoreError, match=r"no usable AWS credentials.*; set AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
            use()


def test_half_of_the_credentials(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="no usable AWS credentials"):
        open_store(f"s3://{BUCKET}/run", moto_endpoint).check_writable()


def test_an_unknown_profile(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match="profile 'nobody' does not exist; correct AWS_PROFILE"):
        open_store(f"s3://{BUCKET}/run", moto_endpoint).check_writable()


@pytest.mark.s3
@pytest.mark.parametrize(
    ("variable", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong-secret"), ("AWS_ACCESS_KEY_ID", "wrong")]
)
def test_wrong_credentials(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    store = open_store(f"s3://{BUCKET}/run", seaweed.endpoint)
    for use in (store.check_writable, lambda: store.put("a", b""), lambda: store.get("a"), lambda: store.delete("a")):
        with pytest.raises(StoreError, match=r"the credentials were rejected.*; set AWS_PROFILE") as raised:
            use()
        assert seaweed.secret_key not in str(raised.value)
        assert "wrong" not in str(raised.value)


@pytest.mark.parametrize("server", ["moto", pytest.param("seaweed", marks=pytest.mark.s3)])
def test_missing_bucket(request: pytest.FixtureRequest, server: str) -> None:
    if server == "moto":
        endpoint = request.getfixturevalue("moto_endpoint")
    else:
        endpoint = request.getfixturevalue("seaweed").endpoint
    store = open_store("s3://no-such-bucket-here/run", endpoint)
    for use in (
        store.check_writable,
        lambda: store.put("a", b""),
        lambda: store.create("a", b""),
        lambda: store.get("a"),
        lambda: store.list(),
    ):
        with pytest.raises(StoreError, match=r"^s3://no-such-bucket-here/run.*no such bucket.*; create it") as raised:
            use()
        assert not isinstance(raised.value, MissingObjectError)


def test_a_name_that_is_no_buckets(moto_endpoint: str) -> None:
    with pytest.raises(StoreError, match=r"S3 does not allow this name of a bucket; correct the s3:// URI"):
        open_store("s3://no bucket/run", moto_endpoint).check_writable()


def test_unreachable_endpoint_is_told_soon(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with socket.socket() as bound:  # bound, not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(StoreError, match=f"no proper answer from {endpoint}.*; check the network") as raised:
            open_store("s3://bucket/run", endpoint.replace("//", "//user:hunter2@")).check_writable()
    assert time.monotonic() - started < 20
    assert "hunter2" not in str(raised.value)


def test_a_server_without_conditional_writes_is_refused(moto_store: S3Store) -> None:
    def forget_condition(params: dict[str, dict[str, str]], **_: object) -> None:
        params["headers"].pop("If-None-Match", None)

    moto_store.client.meta.events.register("before-call.s3.PutObject", forget_condition)
    with pytest.raises(StoreError, match="ignores conditional writes"):
        moto_store.check_writable()
    assert keys(moto_store) == []


Script = Callable[[int, AWSPreparedRequest], AWSResponse | None]


class Requests:
    """Counts a client's requests of one operation; `script` may answer the n-th, or raise, in the server's place."""

    def __init__(self, store: S3Store, operation: str, script: Script = lambda *_: None) -> None:
        self.count = 0
        self.script = script
        store.client.meta.events.register(f"before-send.s3.{operation}", self)  # type: ignore[arg-type]

    def __call__(self, request: AWSPreparedRequest, **_: object) -> AWSResponse | None:
        self.count += 1
        return self.script(self.count, request)


class Body(io.BytesIO):
    def stream(self) -> Iterator[bytes]:
        yield self.read()


def answer(request: AWSPreparedRequest, status: int, code: str) -> AWSResponse:
    xml = f"<Error><Code>{code}</Code><Message>hunter2 said so</Message></Error>"
    return AWSResponse(request.url, status, HTTPHeaders(), Body(xml.encode()))


def lose_first_reply(number: int, request: AWSPreparedRequest) -> None:
    if number == 1:
        session = URLLib3Session()
        try:
            assert session.send(request).status_code == 200
        finally:
            session.close()
        raise ConnectionClosedError(endpoint_url=request.url)


def fail_twice(number: int, request: AWSPreparedRequest) -> AWSResponse | None:
    return answer(request, 503, "SlowDown") if number <= 2 else None


def always_fail(number: int, request: AWSPreparedRequest) -> None:
    raise ConnectionClosedError(endpoint_url=request.url)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("status", "code", "transient"),
    [
        (500, "InternalError", True),
        (502, "", True),
        (503, "SlowDown", True),
        (504, "GatewayTimeout", True),
        (429, "TooManyRequests", True),
        (408, "", True),
        (400, "RequestTimeout", True),
        (400, "BadDigest", True),
        (400, "IncompleteBody", True),
        (400, "ExpiredToken", False),
        (400, "InvalidArgument", False),
        (403, "AccessDenied", False),
        (403, "RequestTimeTooSkewed", False),
        (403, "SignatureDoesNotMatch", False),
        (404, "NoSuchBucket", False),
        (501, "NotImplemented", False),
        (507, "XMinioStorageFull", False),
    ],
)
def test_what_may_pass_is_told_from_what_will_not(moto_store: S3Store, status: int, code: str, transient: bool) -> None:
    Requests(moto_store, "PutObject", lambda _, request: answer(request, status, code))
    with pytest.raises(StoreError) as raised:
        moto_store.put("a", b"")
    assert raised.value.transient is transient


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("error", "told", "transient"),
    [
        (ConnectTimeoutError(endpoint_url="u"), "no proper answer", True),
        (EndpointConnectionError(endpoint_url="u"), "no proper answer", True),
        (FlexibleChecksumError(error_msg="hunter2"), "no proper answer", True),
        (ReadTimeoutError(endpoint_url="u"), "no proper answer", True),
        (ResponseParserError("hunter2"), "no proper answer", True),
        (urllib3.exceptions.SSLError("hunter2"), "no proper answer", True),
        (SSLError(endpoint_url="u", error="EOF occurred in violation of protocol"), "no proper answer", True),
        (SSLError(endpoint_url="u", error="[SSL: CERTIFICATE_VERIFY_FAILED]"), "certificate .*AWS_CA_BUNDLE", False),
        (NoCredentialsError(), "no usable AWS credentials", False),
        (InvalidConfigError(error_msg="hunter2"), "cannot use its settings .InvalidConfigError.; check AWS_", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_on_the_way_to_an_answer(moto_store: S3Store, error: Exception, told: str, transient: bool) -> None:
    def broken(number: int, request: AWSPreparedRequest) -> None:
        raise error

    Requests(moto_store, "ListObjectsV2", broken)
    with pytest.raises(StoreError, match=told) as raised:
        moto_store.list()
    assert raised.value.transient is transient
    assert "hunter2" not in str(raised.value)


@pytest.mark.usefixtures("no_waiting")
def test_create_whose_reply_is_lost_sees_its_own_object(moto_store: S3Store) -> None:
    puts = Requests(moto_store, "PutObject", lose_first_reply)
    gets = Requests(moto_store, "GetObject")
    assert moto_store.create("run.json", b"mine") == b"mine"
    assert (puts.count, gets.count) == (2, 1)


@pytest.mark.usefixtures("no_waiting")
def test_put_that_fails_twice_is_sent_three_times(moto_store: S3Store) -> None:
    puts = Requests(moto_store, "PutObject", fail_twice)
    moto_store.put("a", b"content")
    assert puts.count == 3
    assert moto_store.get("a") == b"content"


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(("variable", "attempts"), [(None, 5), ("2", 2)])
def test_put_gives_up_after_five_attempts_or_the_users_number(
    moto_store: S3Store, monkeypatch: pytest.MonkeyPatch, variable: str | None, attempts: int
) -> None:
    if variable:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", variable)
    puts = Requests(moto_store, "PutObject", always_fail)
    with pytest.raises(StoreError, match="no proper answer"):
        moto_store.put("a", b"content")
    assert puts.count == attempts
    assert keys(moto_store) == []


def test_create_meeting_an_unfinished_writer_tries_again(moto_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # 409: AWS says that another request is under way, and there may be nothing to read yet.
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)

    def conflict_once(number: int, request: AWSPreparedRequest) -> AWSResponse | None:
        return answer(request, 409, "ConditionalRequestConflict") if number == 1 else None

    puts = Requests(moto_store, "PutObject", conflict_once)
    assert moto_store.create("run.json", b"mine") == b"mine"
    assert puts.count == 2
    assert len(naps) == 1


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (403, "AccessDenied", "access denied.*; allow s3:ListBucket"),
        (400, "ExpiredToken", "credentials were rejected.*must be renewed"),
        (400, "AuthorizationHeaderMalformed", "another region.*; set AWS_DEFAULT_REGION"),
        (403, "RequestTimeTooSkewed", "clock"),
        (501, "NotImplemented", "If-None-Match"),
        (503, "SlowDown", "overloaded.*; try again later"),
        (507, "XMinioStorageFull", "no space left on the server .XMinioStorageFull, HTTP 507.; free some space there"),
        (418, "Teapot", "the server refused .Teapot, HTTP 418.; check"),
    ],
)
def test_answers_of_the_server_are_told_with_the_remedy(moto_store: S3Store, status: int, code: str, told: str) -> None:
    for operation in ("PutObject", "GetObject", "DeleteObject", "ListObjectsV2"):
        Requests(moto_store, operation, lambda _, request: answer(request, status, code))
    for use in (
        moto_store.check_writable,
        lambda: moto_store.put("a", b""),
        lambda: moto_store.create("a", b""),
        lambda: moto_store.get("a"),
        lambda: moto_store.delete("a"),
        lambda: moto_store.list(),
    ):
        with pytest.raises(StoreError, match=told) as raised:
            use()
        assert str(raised.value).startswith(moto_store.uri)
        assert "\n" not in str(raised.value)
        assert "hunter2" not in str(raised.value)


@pytest.mark.usefixtures("no_waiting")
def test_a_get_that_breaks_off_is_read_again(moto_store: S3Store) -> None:
    moto_store.put("a", b"content")
    gets = Requests(moto_store, "GetObject")

    def cut(parsed: dict[str, object], **_: object) -> None:
        if gets.count < 3:
            parsed["Body"]._content_length = "99"  # type: ignore[attr-defined]

    moto_store.client.meta.events.register("after-call.s3.GetObject", cut)
    assert moto_store.get("a") == b"content"
    assert gets.count == 3


@pytest.mark.usefixtures("no_waiting")
def test_a_get_that_always_breaks_off_is_an_error(moto_store: S3Store) -> None:
    moto_store.put("a", b"content")
    gets = Requests(moto_store, "GetObject")

    def cut(parsed: dict[str, object], **_: object) -> None:
        parsed["Body"]._content_length = "99"  # type: ignore[attr-defined]

    moto_store.client.meta.events.register("after-call.s3.GetObject", cut)
    with pytest.raises(StoreError, match="no proper answer"):
        moto_store.get("a")
    assert gets.count == 3


# Servers that do not know the newer checksums

REFUSALS = [Fault.NOT_IMPLEMENTED, Fault.ACCESS_DENIED, Fault.BAD_SIGNATURE, Fault.BAD_REQUEST]
CHECKSUM_VARIABLES = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")


def older_server(upstream: str, fault: Fault) -> FaultProxy:
    """Refuses every request with a header x-amz-checksum-*, as older servers do."""
    return FaultProxy(upstream, Rule(fault, header="x-amz-checksum-"))


@pytest.mark.parametrize("how", ["argument", "variable", "profile"])
def test_a_server_without_the_newer_checksums_works(
    moto_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    with older_server(moto_endpoint, Fault.NOT_IMPLEMENTED) as server:
        if how == "variable":
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        elif how == "profile":
            (tmp_path / "config").write_text(f"[default]\nendpoint_url = {server.endpoint}\n")
            monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        store = S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}", server.endpoint if how == "argument" else None)
        store.check_writable()
        store.put("a", b"votes")
        assert store.get("a") == b"votes"
        assert server.counts == {}
        assert server.count("PUT") == 3


@pytest.mark.parametrize("where", ["variables", "profile"])
@pytest.mark.parametrize("fault", REFUSALS)
def test_the_users_own_choice_of_checksums_wins_and_is_named_where_it_is_refused(
    moto_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Fault, where: str
) -> None:
    if where == "variables":
        for name in CHECKSUM_VARIABLES:
            monkeypatch.setenv(name, "when_supported")
    else:
        lines = [f"{name.removeprefix('AWS_').lower()} = when_supported" for name in CHECKSUM_VARIABLES]
        (tmp_path / "config").write_text("\n".join(["[default]", *lines, ""]))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with older_server(moto_endpoint, fault) as server:
        store = S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}", server.endpoint)
        with pytest.raises(StoreError, match=r"x-amz-checksum-\*.*to when_required") as raised:
            store.put("a", b"votes")
    assert fault.value.split()[1] in str(raised.value)
    assert "\n" not in str(raised.value)
    assert server.counts == {fault: 1}


@pytest.mark.parametrize("fault", REFUSALS)
def test_checksums_are_not_blamed_where_none_were_sent(moto_endpoint: str, fault: Fault) -> None:
    with FaultProxy(moto_endpoint, Rule(fault)) as server, pytest.raises(StoreError) as raised:
        S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}", server.endpoint).put("a", b"votes")
    assert "checksum" not in str(raised.value)


def test_aws_itself_gets_the_newer_checksums() -> None:
    config = S3Store("s3://bucket/run").client.meta.config
    assert config.request_checksum_calculation == config.response_checksum_validation == "when_supported"


# Places


def test_a_path_is_a_place(tmp_path: Path) -> None:
    assert open_store(tmp_path / "run").uri == f"{tmp_path}/run"


@pytest.mark.parametrize(("uri", "endpoint"), [(3, None), (None, None), (b"run", None), ("s3://b/run", 9000)])
def test_what_is_no_place_gets_one_line(uri: Any, endpoint: Any) -> None:
    with pytest.raises(ConfigError, match="must be text"):
        open_store(uri, endpoint)


def test_a_bucket_of_googles_is_told_its_way() -> None:
    with pytest.raises(ConfigError, match=r"storage\.googleapis\.com"):
        open_store("gs://bucket/run")
