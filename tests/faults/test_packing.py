"""`drs-ray pack` that is killed: nothing half-written can be read, and the next one ends with the undisturbed bytes."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drs_ray.data.arrays import load_mnist5k
from drs_ray.data.datasets import load_dataset
from drs_ray.data.packing import pack_dataset
from drs_ray.errors import DataError
from drs_ray.storage import LocalStore
from tests.support.runs import write_config

PACK = """
import os, sys, time
from drs_ray.data import packing
real = os.replace
def slowly(source, target):  # so that there is time to kill it
    time.sleep(0.01)
    real(source, target)
os.replace = slowly
packing.ROW_GROUP_BYTES, packing.SHARD_BYTES = 2000, 10000
from drs_ray.cli import main
main()
"""


def _start(directory: Path) -> subprocess.Popen[bytes]:
    config = write_config(directory / "config.yaml", {"dataset": {"name": "mnist5k", "split": "train"}})
    command = [sys.executable, "-c", PACK, "pack", str(config), str(directory / "out"), "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _shards(directory: Path) -> dict[str, int]:
    """Names, and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (directory / "out").glob("train/[0-9]*.parquet")}


@pytest.mark.slow
def test_sigkill_at_random_moments(tmp_path, monkeypatch):
    moments = random.Random(5)
    kept: dict[str, int] = {}
    for _ in range(2):
        pack = _start(tmp_path)
        wanted = len(kept) + moments.randint(1, 20)
        while len(_shards(tmp_path)) < wanted:
            assert pack.poll() is None, "the pack was to be killed in the middle"
            time.sleep(0.001)
        pack.kill()
        assert pack.wait() == -9
        assert _shards(tmp_path).items() >= kept.items()  # what was stored is not stored again
        kept = _shards(tmp_path)
        with pytest.raises(DataError, match="no split 'train' is packed"):
            load_dataset("parquet", root=tmp_path / "out", split="train")
    assert _start(tmp_path).wait() == 0
    assert _shards(tmp_path).items() >= kept.items()
    monkeypatch.setattr("drs_ray.data.packing.ROW_GROUP_BYTES", 2000)
    monkeypatch.setattr("drs_ray.data.packing.SHARD_BYTES", 10_000)
    undisturbed, _ = pack_dataset(load_mnist5k("train"), None, LocalStore(tmp_path / "calm"), lambda done: None)
    assert len(undisturbed.shards) > 60
    for name in ("_dataset.json", *(Path(shard.key).name for shard in undisturbed.shards)):
        assert (tmp_path / "out" / "train" / name).read_bytes() == (tmp_path / "calm" / "train" / name).read_bytes()
    assert _shards(tmp_path).keys() == {Path(shard.key).name for shard in undisturbed.shards}
