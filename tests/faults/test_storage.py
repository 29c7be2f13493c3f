"""Storage under fire: a real S3 server behind a proxy that spoils requests, a server killed, a bucket that vanishes.

Every fault is scripted and counted. Every run ends with the undisturbed run's votes, at once or after a resume.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from drs_ray import certify
from drs_ray.cli import main
from drs_ray.config import parse_config
from drs_ray.engine import inline_executor
from drs_ray.engine.observer import Observer
from drs_ray.errors import MissingObjectError, StoreError
from drs_ray.storage import S3Store, open_store
from drs_ray.storage import s3 as s3_module
from tests import servers
from tests.servers import BUCKET
from tests.support.fault_proxy import Fault, FaultProxy, Rule
from tests.support.runs import command, counts_digest, run_config, run_data, write_config

pytestmark = pytest.mark.s3

PASSING = [Fault.SLOW_DOWN, Fault.UNAVAILABLE, Fault.INTERNAL, Fault.RESET, Fault.LOST_REPLY, Fault.TRUNCATED]
ALWAYS = range(1, 1000)


@pytest.fixture(scope="module")
def weed():
    """A SeaweedFS of this module's own, for it is killed."""
    with servers.mortal_seaweed() as weed:
        yield weed


@pytest.fixture(autouse=True)
def credentials(weed, monkeypatch):
    """The server's credentials, but not its address, in the environment."""
    for name, value in weed.server.environment.items():
        if name != "AWS_ENDPOINT_URL":
            monkeypatch.setenv(name, value)


@pytest.fixture
def proxy(weed):
    """The way to the server: without faults until a test plays some."""
    with FaultProxy(weed.server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def store(proxy):
    """A place of the test's own behind the proxy."""
    return S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}", proxy.endpoint)


@pytest.fixture
def no_waiting(monkeypatch):
    """Pauses between attempts take no time; how many attempts there are does not change."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


@pytest.fixture
def one_attempt(monkeypatch):
    """boto3 does not try again, so that what is counted is what drs-ray does."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


# The store's methods


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("fault", [*PASSING, Fault.CUT_UPLOAD])
def test_the_third_put_fails_twice(proxy, store, fault):
    proxy.play(Rule(fault, "PUT", nth={3, 4}))
    contents = {f"counts/{number}": os.urandom(20_000) for number in range(5)}
    for key, content in contents.items():
        store.put(key, content)
    assert proxy.count("PUT") == 7
    assert proxy.counts == {fault: 2}
    assert {item.key: store.get(item.key) for item in store.list()} == contents


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("fault", PASSING)
def test_reads_that_fail_twice_are_sent_three_times(proxy, store, fault):
    content = os.urandom(20_000)
    store.put("a", content)
    proxy.play(Rule(fault, "GET", "/a", nth={1, 2}), Rule(fault, "GET", "list-type=2", nth={1, 2}))
    assert store.get("a") == content
    assert proxy.count("GET") == 3
    assert [item.key for item in store.list()] == ["a"]
    assert proxy.count("GET") == 6
    assert proxy.counts == {fault: 4}


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("fault", PASSING)
def test_a_delete_that_fails_twice_is_sent_three_times(proxy, store, fault):
    store.put("a", b"1")
    proxy.play(Rule(fault, "DELETE", nth={1, 2}))
    store.delete("a")
    assert proxy.count("DELETE") == 3
    assert list(store.list()) == []


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("fault", [*PASSING, Fault.CUT_UPLOAD])
def test_puts_that_always_fail_end_after_five_attempts(proxy, store, fault):
    store.put("old", b"old content")
    proxy.play(Rule(fault, "PUT"))
    for key in ("old", "new"):
        with pytest.raises(StoreError) as caught:
            store.put(key, b"new content!")
        assert caught.value.transient
        assert str(caught.value).startswith(f"{store.uri}/{key}: ")
        assert str(caught.value).endswith("a run goes on where it stopped")
    assert proxy.count("PUT") == 1 + 5 + 5
    # What an error leaves behind is the old object or the new one, whole.
    arrived = fault in (Fault.LOST_REPLY, Fault.TRUNCATED)
    assert store.get("old") == (b"new content!" if arrived else b"old content")
    assert [item.key for item in store.list()] == (["new", "old"] if arrived else ["old"])


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault.EXPIRED_TOKEN, r"the credentials were rejected \(ExpiredToken, HTTP 400\); .*must be renewed"),
        (Fault.ACCESS_DENIED, r"access denied \(AccessDenied, HTTP 403\); allow s3:ListBucket"),
    ],
)
def test_a_refusal_is_told_at_once(proxy, store, fault, told):
    proxy.play(Rule(fault))
    uses = (lambda: store.put("a", b"1"), lambda: store.create("a", b"1"), lambda: store.get("a"), store.list)
    for number, use in enumerate(uses, start=1):
        with pytest.raises(StoreError, match=told) as caught:
            use()
        assert not caught.value.transient
        assert len(proxy.requests) == number


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.TRUNCATED])
def test_create_whose_reply_is_lost_recognises_its_own_object(proxy, store, fault):
    proxy.play(Rule(fault, "PUT", nth={1}))
    assert store.create("run.json", b"mine") == b"mine"
    assert (proxy.count("PUT"), proxy.count("GET"), proxy.counts[fault]) == (2, 1, 1)
    assert store.create("run.json", b"another's") == b"mine"


@pytest.mark.usefixtures("no_waiting")
def test_create_whose_replies_are_all_lost_is_found_by_the_next_start(proxy, store):
    proxy.play(Rule(Fault.LOST_REPLY, "PUT", nth={1}), Rule(Fault.UNAVAILABLE, "PUT", nth=range(2, 6)))
    with pytest.raises(StoreError, match="overloaded") as caught:
        store.create("run.json", b"mine")
    assert caught.value.transient
    assert proxy.count("PUT") == 5
    assert store.create("run.json", b"mine") == b"mine"


@pytest.mark.usefixtures("no_waiting")
def test_a_lost_create_does_not_hide_another_writers_object(proxy, store, weed):
    theirs = open_store(store.uri, weed.server.endpoint)
    proxy.play(Rule(Fault.RESET, "PUT", nth={1}, before=lambda: theirs.create("run.json", b"theirs")))
    assert store.create("run.json", b"mine") == b"theirs"


@pytest.mark.usefixtures("no_waiting")
def test_a_listing_whose_second_page_fails_is_whole_or_an_error(proxy, store, weed):
    names = [f"counts/{number:04}" for number in range(1001)]
    direct = S3Store(store.uri, weed.server.endpoint)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: direct.put(name, b"1"), names))
    second = "continuation-token"
    proxy.play(Rule(Fault.TRUNCATED, "GET", second, nth={1}), Rule(Fault.SLOW_DOWN, "GET", second, nth={2}))
    assert [item.key for item in store.list()] == names
    assert proxy.count("GET") == 1 + 3
    proxy.play(Rule(Fault.TRUNCATED, "GET", second))
    with pytest.raises(StoreError, match="overloaded or failing") as caught:  # boto3 makes a 500 of half an XML
        store.list()
    assert caught.value.transient
    assert proxy.count("GET") == 4 + 1 + 5


@pytest.mark.usefixtures("no_waiting")
def test_a_broken_answer_that_an_object_is_not_there_is_no_answer(proxy, store):
    proxy.play(Rule(Fault.TRUNCATED, "GET", nth={1}))
    with pytest.raises(MissingObjectError):
        store.get("a")
    assert proxy.count("GET") == 2
    proxy.play(Rule(Fault.TRUNCATED, "GET"))
    with pytest.raises(StoreError, match="no such bucket"):
        store.get("a")
    assert proxy.count("GET") == 2 + 3


@pytest.mark.usefixtures("no_waiting")
def test_a_get_whose_body_always_breaks_off_ends_after_three_reads(proxy, store):
    store.put("a", os.urandom(20_000))
    proxy.play(Rule(Fault.TRUNCATED, "GET"))
    with pytest.raises(StoreError, match="no proper answer") as caught:
        store.get("a")
    assert caught.value.transient
    assert proxy.count("GET") == 3


def test_a_stalled_connection_ends_in_bounded_time(proxy, store, monkeypatch):
    monkeypatch.setattr(s3_module, "_READ_SECONDS", 2.0)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    proxy.play(Rule(Fault.STALL, "PUT", nth={1, 3, 4}, seconds=3600))
    store.put("a", b"first")  # the first attempt stalls, the second does not
    with pytest.raises(StoreError, match=r"no proper answer .*ReadTimeoutError") as caught:
        store.put("a", b"second")
    assert caught.value.transient
    assert (proxy.count("PUT"), proxy.counts) == (4, {Fault.STALL: 3})
    assert store.get("a") == b"first"


def test_a_late_reply_is_waited_for(proxy, store):
    proxy.play(Rule(Fault.DELAY, "PUT", seconds=1.5))
    store.put("a", b"1")
    assert proxy.count("PUT") == 1


@pytest.mark.usefixtures("no_waiting")
def test_what_is_missing_is_missing_behind_faults_too(proxy, store):
    proxy.play(Rule(Fault.SLOW_DOWN, "GET", nth={1}))
    with pytest.raises(MissingObjectError) as caught:
        store.get("nothing")
    assert not caught.value.transient


def test_faults_are_switched_on_and_off_and_chances_are_reproducible(weed, credentials):
    uri = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    faults = []
    for _ in range(2):
        with FaultProxy(weed.server.endpoint, Rule(Fault.DELAY, "PUT", chance=0.5), seed=3) as proxy:
            store = S3Store(uri, proxy.endpoint)
            proxy.enabled = False
            store.put("calm", b"1")
            proxy.enabled = True
            with ThreadPoolExecutor(4) as pool:  # in any order
                list(pool.map(lambda number, store=store: store.put(f"{number}", b"1"), range(40)))
            faults.append(proxy.counts[Fault.DELAY])
    assert faults[0] == faults[1]
    assert 10 <= faults[0] <= 30


def test_the_flag_survives_pickling():
    for transient in (True, False):
        again = pickle.loads(pickle.dumps(StoreError("s3://b/a: 503", transient)))
        assert (str(again), again.transient) == ("s3://b/a: 503", transient)


# Whole runs


class Watched(Observer):
    """Keeps how often each unit was stored again, and the events."""

    def __init__(self):
        self.retries = []
        self.events = Counter()

    def unit_done(self, unit, outcome):
        self.retries.append(outcome.put_retries)

    def event(self, message, kind="note", **fields):
        self.events[kind] += 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run in a directory: its result, and the digest that every run must end with."""
    place = tmp_path_factory.mktemp("undisturbed") / "run"
    return certify(run_config(place)), counts_digest(place)


def _data(name, proxy, bucket=BUCKET, **engine):
    data = run_data(f"s3://{bucket}/{name}")
    data["output"] = {"uri": data["output"], "endpoint_url": proxy.endpoint}
    data["engine"] |= engine
    return data


def _digest(data):
    return counts_digest(open_store(data["output"]["uri"], data["output"]["endpoint_url"]))


@pytest.fixture
def fails(tmp_path, monkeypatch, capsys):
    """Runs `drs-ray certify`; returns its exit code and its one line of error, which must be the last."""
    monkeypatch.setattr(inline_executor, "RETRY_SECONDS", 0.0)

    def run(data):
        config = write_config(tmp_path / "config.yaml", data)
        monkeypatch.setattr(sys, "argv", ["drs-ray", "certify", str(config), "--quiet"])
        with pytest.raises(SystemExit) as ended:
            main()
        lines = capsys.readouterr().err.splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], lines
        assert not any("Traceback" in line for line in lines)
        return ended.value.code, lines[-1]

    return run


@pytest.mark.usefixtures("no_waiting")
def test_a_run_through_bursts_of_faults_has_the_undisturbed_votes(proxy, undisturbed):
    # Only keys with a fixed name: what is drawn for them is the same each time.
    storm = [Rule(fault, path="/counts/", chance=0.12) for fault in [*PASSING, Fault.CUT_UPLOAD]]
    start = [Rule(Fault.LOST_REPLY, "PUT", "/run.json", nth={1}), Rule(Fault.TRUNCATED, "GET", "/run.json", nth={1})]
    proxy.play(*start, Rule(Fault.SLOW_DOWN, "GET", "list-type=2", nth={2, 3}), *storm)
    watched = Watched()
    data = _data("bursts", proxy)
    result = certify(parse_config(data), watched)
    assert set(proxy.counts) == {*PASSING, Fault.CUT_UPLOAD}
    assert proxy.count("PUT", "/counts/") > 8
    assert watched.events["unit_set_aside"] == watched.events["unit_not_stored"] == 0
    assert result.certificates.equals(undisturbed[0].certificates)
    assert _digest(data) == undisturbed[1]


@pytest.mark.usefixtures("one_attempt")
def test_a_run_goes_on_when_the_server_is_killed_and_comes_back(proxy, weed, undisturbed):
    proxy.play(Rule(Fault.RESET, "PUT", "/counts/", nth={3}, before=weed.kill))
    watched = Watched()
    data = _data("killed", proxy, store_seconds=120)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(certify, parse_config(data), watched)
        try:
            proxy.wait_for(Fault.UNREACHABLE, 2)
        finally:
            weed.restart()
        result = running.result(120)
    assert result.certificates.equals(undisturbed[0].certificates)
    assert _digest(data) == undisturbed[1]
    # The part that met the dead server was stored without being computed again.
    assert [retries > 0 for retries in watched.retries] == [False, False, True, *[False] * 5]
    assert sum(watched.retries) == proxy.counts[Fault.RESET] + proxy.counts[Fault.UNREACHABLE]
    assert watched.events == {}


@pytest.mark.usefixtures("one_attempt")
def test_a_server_that_stays_away_ends_the_run_which_then_resumes(proxy, weed, fails, undisturbed):
    proxy.play(Rule(Fault.RESET, "PUT", "/counts/", nth={4}, before=weed.kill))
    data = _data("away", proxy, store_seconds=0.5)
    try:
        code, line = fails(data)
        assert code == 1
        assert "the last 20 units all failed, giving up; last cause: s3://" in line
        assert f"no proper answer from {proxy.endpoint}" in line
        assert "failing for" in line
        assert "run the same command to resume" in line
        assert proxy.count("PUT", "/counts/") >= 3 + 20
        code, line = fails(data)  # a driver that is started meanwhile
        assert code == 1
        assert line.startswith(f"error: {data['output']['uri']}: no proper answer from {proxy.endpoint}")
    finally:
        weed.restart()
    watched = Watched()
    certify(parse_config(data), watched)
    assert watched.events == {"resumed": 1}
    assert len(watched.retries) == 5  # three of the eight were stored before
    assert _digest(data) == undisturbed[1]


def test_a_bucket_that_vanishes_ends_the_run_which_then_resumes(proxy, weed, fails, undisturbed):
    bucket = "drs-ray-vanishes"
    client = weed.server.client()
    client.create_bucket(Bucket=bucket)

    def vanish():
        for entry in client.list_objects_v2(Bucket=bucket)["Contents"]:
            client.delete_object(Bucket=bucket, Key=entry["Key"])
        client.delete_bucket(Bucket=bucket)

    proxy.play(Rule(Fault.RESET, "PUT", "/counts/", nth={4}, before=vanish))
    data = _data("run", proxy, bucket)
    code, line = fails(data)
    assert code == 1
    assert "no such bucket (NoSuchBucket, HTTP 404); create it" in line
    assert "run the same command to resume" in line
    code, line = fails(data)
    assert code == 1
    assert line.startswith(f"error: s3://{bucket}/run: no such bucket")
    client.create_bucket(Bucket=bucket)
    certify(parse_config(data))
    assert _digest(data) == undisturbed[1]


def test_a_token_that_expires_ends_the_run_which_then_resumes(proxy, fails, undisturbed):
    proxy.play(Rule(Fault.EXPIRED_TOKEN, "PUT", nth=ALWAYS[3:], path="/counts/"))
    data = _data("expired", proxy)
    code, line = fails(data)
    assert code == 1
    assert "the credentials were rejected (ExpiredToken, HTTP 400)" in line
    assert "keys that expire must be renewed" in line
    assert "run the same command to resume" in line
    assert proxy.count("PUT", "/counts/") == 3 + 20  # at once each time: waiting renews no token
    proxy.play()
    watched = Watched()
    certify(parse_config(data), watched)
    assert len(watched.retries) == 5
    assert _digest(data) == undisturbed[1]


def test_a_wrong_secret_is_told_before_anything_is_computed(proxy, weed, fails, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    data = _data("secret", proxy)
    code, line = fails(data)
    assert code == 1
    assert "the credentials were rejected (SignatureDoesNotMatch, HTTP 403); set AWS_PROFILE" in line
    assert "wrong-secret" not in line
    assert len(proxy.requests) == 1
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", weed.server.secret_key)
    assert list(open_store(data["output"]["uri"], weed.server.endpoint).list()) == []


@pytest.mark.ray
@pytest.mark.slow
def test_ray_workers_store_through_faults_and_a_killed_server(tmp_path, proxy, weed, ray_directory, undisturbed):
    faults = [Fault.SLOW_DOWN, Fault.LOST_REPLY, Fault.TRUNCATED, Fault.CUT_UPLOAD]
    rules = [Rule(fault, "PUT", "/counts/", nth={number}) for number, fault in enumerate(faults, start=1)]
    proxy.play(*rules, Rule(Fault.RESET, "PUT", "/counts/", nth={6}, before=weed.kill))
    data = _data("ray", proxy, address="local", workers=2)
    config = write_config(tmp_path / "config.yaml", data)
    environment = os.environ | {"RAY_TMPDIR": ray_directory, "AWS_MAX_ATTEMPTS": "2"}
    with (tmp_path / "stderr").open("w") as stderr:
        driver = subprocess.Popen(command(["certify", str(config)]), env=environment, stdout=stderr, stderr=stderr)
    try:
        proxy.wait_for(Fault.UNREACHABLE, 4, seconds=120)
        weed.restart()
        code = driver.wait(timeout=120)
    finally:
        driver.kill()
        driver.wait()
        if proxy.counts[Fault.UNREACHABLE] < 4:
            weed.restart()
    text = (tmp_path / "stderr").read_text()
    assert code == 0, text
    assert "set aside" not in text
    assert "tried again" not in text
    assert {fault: proxy.counts[fault] for fault in faults} == dict.fromkeys(faults, 1)
    assert _digest(data) == undisturbed[1]
