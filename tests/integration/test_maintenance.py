"""Compacting and repairing real runs by the command line, in a directory and on a real S3 server.

Whatever is merged, killed, damaged or moved aside: the run ends with the counts of the undisturbed one.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drs_ray import certify
from drs_ray.config import parse_config
from drs_ray.counts.encoding import encode_part
from drs_ray.counts.plan import plan_units
from drs_ray.counts.run_record import read_record
from drs_ray.engine.status import run_status
from drs_ray.engine.unit_runner import UnitRunner
from drs_ray.storage import Store, open_store
from tests.servers import BUCKET
from tests.support.runs import (
    BATCH,
    Driver,
    command,
    counts_digest,
    drs_ray,
    drs_ray_here,
    run_config,
    run_data,
    write_config,
)
from tests.unit.engine.factories import Recorder


@dataclass(frozen=True)
class Place:
    """A finished run somewhere, and how the command line gets there."""

    data: dict[str, Any]
    store: Store
    options: tuple[str, ...]

    def drs_ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        return drs_ray_here([words[0], self.store.uri, *words[1:], *self.options])

    def certify(self) -> None:
        certify(parse_config(self.data))

    def small(self) -> list[str]:
        return [item.key for item in self.store.list("counts/k")]

    def compacted(self) -> list[str]:
        return [item.key for item in self.store.list("counts/compacted-")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest that every run must end with."""
    place = tmp_path_factory.mktemp("undisturbed") / "run"
    certify(run_config(place))
    return counts_digest(place)


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "directory":
        uri, options, endpoint = str(tmp_path / "run"), (), None
        data = run_data(uri)
    else:
        endpoint = request.getfixturevalue("seaweed").endpoint
        uri = f"s3://{BUCKET}/{tmp_path.name}"
        data, options = run_data(uri), ("--endpoint-url", endpoint)
        data["output"] = {"uri": uri, "endpoint_url": endpoint}
    found = Place(data, open_store(uri, endpoint), options)
    found.certify()
    return found


def test_compact_then_damage_then_repair(place: Place, undisturbed: str) -> None:
    assert len(place.small()) == 8
    done = place.drs_ray("compact")
    assert done.returncode == 0, done.stderr
    assert "8 units merged into 1 object, 8 small parts deleted" in done.stdout
    assert place.small() == []
    assert counts_digest(place.store) == undisturbed

    (name,) = place.compacted()
    damaged = bytearray(place.store.get(name))
    damaged[len(damaged) // 2] ^= 1
    place.store.put(name, bytes(damaged))
    place.store.put("counts/k0/s0/notes.txt", b"what is this")
    refused = place.drs_ray("reduce")
    assert refused.returncode == 1
    assert f"{name}: its bytes are not those that it is named after" in refused.stderr
    assert "`drs-ray repair RUN`" in refused.stderr
    refused = place.drs_ray("compact")
    assert refused.returncode == 1
    assert f"left alone: {name}" in refused.stdout

    dry = place.drs_ray("repair", "--dry-run")
    assert dry.returncode == 0
    assert "4 would be moved aside; nothing was changed" in dry.stdout
    assert place.compacted() == [name]
    done = place.drs_ray("repair")
    assert done.returncode == 0, done.stderr
    assert f"{name}: its bytes are not those that it is named after; moved to set-aside/{name}" in done.stdout
    assert "certificates.parquet: derived from counts that cannot be trusted" in done.stdout
    assert place.store.get(f"set-aside/{name}") == damaged
    assert "no counts yet" in place.drs_ray("reduce").stderr
    assert "0 of 8" in place.drs_ray("status").stdout
    place.certify()
    assert counts_digest(place.store) == undisturbed
    assert "all counts can be trusted" in place.drs_ray("repair").stdout


@pytest.mark.parametrize(
    ("place", "compacted"),
    [("directory", False), pytest.param("s3", True, marks=pytest.mark.s3)],
    indirect=["place"],
    ids=["small", "compacted"],
)
def test_what_verify_finds_repair_moves_aside_by_name(place: Place, undisturbed: str, compacted: bool) -> None:
    record = read_record(place.store)
    unit = plan_units(record)[3]
    rows = list(UnitRunner(record, unit.sub_image).count(unit))
    top, second = np.argsort(rows[1].votes)[::-1][:2]
    rows[1].votes[[top, second]] += [1, -1]
    place.store.put(unit.key, encode_part(rows, record.run_id, unit.key))
    if compacted:
        assert place.drs_ray("compact").returncode == 0
        assert "all counts can be trusted" in place.drs_ray("repair").stdout
    found = place.drs_ray("verify", "--units", "8", "--quiet")
    assert found.returncode == 1
    words = found.stderr.splitlines()[-1].partition("`drs-ray ")[2].partition("`")[0].split()
    assert words == ["repair", place.store.uri, "--unit", unit.key]
    done = drs_ray_here([*words, *place.options])
    assert done.returncode == 0, done.stderr
    assert f"{unit.key}: named as wrong by who ran repair; moved to set-aside/{unit.key}" in done.stdout
    assert "7 of 8" in place.drs_ray("status").stdout
    place.certify()
    assert counts_digest(place.store) == undisturbed
    again = drs_ray_here(["repair", place.store.uri, "--unit", "counts/k0", *place.options])
    assert again.returncode == 2
    assert "counts/k0: no unit of this run has this key" in again.stderr


def test_files_of_other_programs_are_ignored_named_and_moved_aside(tmp_path: Path, undisturbed: str) -> None:
    run = tmp_path / "run"
    certify(run_config(run))
    there = ["counts/Thumbs.db", "counts/_SUCCESS", "counts/k0/s0/_SUCCESS"]
    for key in [*there, "sessions/Thumbs.db"]:
        (run / key).write_bytes(b"")
    recorder = Recorder()
    certify(run_config(run), recorder)
    note = "ignored among the counts: 3 objects that cannot be parts, first counts/Thumbs.db; `drs-ray repair`"
    assert any(note in event for event in recorder.events)
    for words in (["reduce"], ["report"], ["verify", "--units", "1"], ["audit"], ["certificate", "0"], ["compact"]):
        done = drs_ray_here([words[0], str(run), *words[1:]])
        assert done.returncode == 0, (words, done.stderr)
    assert run_status(open_store(run)).unknown_parts == tuple(there)
    found = drs_ray_here(["repair", str(run)])
    assert [line.partition(":")[0] for line in found.stdout.splitlines()[:3]] == there
    assert (run / "certificates.parquet").exists()  # no part of theirs was in it
    assert run_status(open_store(run)).unknown_parts == ()
    assert counts_digest(run) == undisturbed


@pytest.mark.ray
@pytest.mark.slow
def test_compact_beside_a_live_driver_with_sigkills_of_the_compactor(tmp_path: Path, ray_directory: str) -> None:
    """The driver computes, the compactor merges and is killed at several moments, and a reader looks on."""
    run = tmp_path / "run"
    gate = tmp_path / "gate"
    data = run_data(run, address="local", images=8, factory="slow", trigger=BATCH, seconds=0.1, gate=str(gate))
    data["engine"] |= {"images_per_unit": 1, "workers": 1}
    expected = _digest_of(tmp_path / "expected", data)
    gate.touch()
    driver = Driver(write_config(tmp_path / "config.yaml", data), os.environ | {"RAY_TMPDIR": ray_directory})
    driver.wait_until(lambda: list((run / "counts").rglob("i*.parquet")), "the first part")
    words, ends = ["compact", str(run)], []
    usual = _seconds(words)
    for share in itertools.cycle((0.5, 0.9, 0.7, 2.0, 0.8)):
        if driver.poll() is not None:
            break
        ends.append(_killed_after(words, share * usual))
        counts_digest(run)  # every row once, or it raises
        if -signal.SIGKILL not in ends:  # it was slower when it was measured
            usual /= 2
        elif len(ends) > 3:
            gate.unlink(missing_ok=True)
    assert driver.returncode == 0, driver.text
    assert -signal.SIGKILL in ends
    assert set(ends) <= {0, -signal.SIGKILL}
    assert drs_ray_here(["compact", str(run)]).returncode == 0
    assert list((run / "counts").rglob("i*.parquet")) == []
    assert counts_digest(run) == expected


def _digest_of(place: Path, data: Mapping[str, Any]) -> str:
    """Of the same run, done inline without disturbance."""
    certify(parse_config({**data, "output": str(place), "engine": data["engine"] | {"address": "inline"}}))
    return counts_digest(place)


def _seconds(words: list[str]) -> float:
    """How long a command takes in a process on this machine."""
    start = time.monotonic()
    assert drs_ray(words).returncode == 0
    return time.monotonic() - start


def _killed_after(words: list[str], seconds: float) -> int:
    """How a command ends that is killed unless it is quicker."""
    process = subprocess.Popen(command(words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait()


def test_sigkill_of_repair_at_several_moments(tmp_path: Path, undisturbed: str) -> None:
    run = tmp_path / "run"
    certify(run_config(run))
    record = read_record(open_store(str(run)))
    for unit in plan_units(record)[::2]:
        (run / unit.key).write_bytes(b"damaged")
    usual = _seconds(["repair", str(shutil.copytree(run, tmp_path / "copy"))])
    ends = [_killed_after(["repair", str(run)], share * usual) for share in (0.1, 0.5, 0.8, 0.9, 1.0)]
    assert -signal.SIGKILL in ends
    assert set(ends) <= {0, -signal.SIGKILL}
    assert drs_ray_here(["repair", str(run)]).returncode == 0
    copies = [path.read_bytes() for path in (run / "set-aside" / "counts").rglob("*.parquet")]
    assert copies == [b"damaged"] * 4
    certify(run_config(run))
    assert counts_digest(run) == undisturbed
