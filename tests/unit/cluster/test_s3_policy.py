"""cluster/iam/s3.json allows what drs-ray asks of S3, and nothing else: all commands are run, their requests seen."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient

import drs_ray
from drs_ray.config import parse_config
from drs_ray.counts.compaction import compact_run
from drs_ray.counts.repair import repair_run
from drs_ray.counts.run_record import read_record
from drs_ray.data.datasets import load_dataset
from drs_ray.data.packing import pack_dataset
from drs_ray.engine.status import run_status
from drs_ray.storage import open_store
from tests.support.runs import run_data

POLICY = Path(__file__).parents[3] / "cluster" / "iam" / "s3.json"
# Which permission a request needs: https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html
ACTIONS = {
    "CopyObject": {"s3:GetObject", "s3:PutObject"},
    "DeleteObject": {"s3:DeleteObject"},
    "DeleteObjects": {"s3:DeleteObject"},
    "GetObject": {"s3:GetObject"},
    "HeadBucket": {"s3:ListBucket"},
    "HeadObject": {"s3:GetObject"},
    "ListObjectsV2": {"s3:ListBucket"},
    "PutObject": {"s3:PutObject"},
}

pytestmark = pytest.mark.s3


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of all requests that any boto3 client makes meanwhile."""
    seen: set[str] = set()
    genuine = BaseClient._make_api_call  # type: ignore[attr-defined]

    def recorded(client: BaseClient, operation: str, parameters: dict[str, object]) -> object:
        seen.add(operation)
        return genuine(client, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", recorded)
    return seen


def _data(place: str) -> dict[str, Any]:
    """A run whose images, checkpoints and results are on S3."""
    data = run_data(place, images=6)
    data["classifiers"] = [
        {"architecture": "digits-cnn", "checkpoint": f"s3://policy/{k}.safetensors", "sigma": 0.5} for k in (0, 1)
    ]
    return data | {"training": {"epochs": 1, "split": "test"}}


def test_the_policy_is_what_the_commands_need(
    requests: set[str], moto_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    boto3.client("s3").create_bucket(Bucket="policy")
    place = "s3://policy/run"
    data = _data(place)
    config = parse_config(data | {"dataset": data["dataset"] | {"name": "parquet", "root": "s3://policy/digits"}})
    requests.clear()
    pack_dataset(load_dataset("mnist5k"), None, open_store("s3://policy/digits"), on_progress=lambda images: None)
    drs_ray.train(parse_config(data))
    drs_ray.certify(config)
    drs_ray.certify(config)  # nothing is left to do
    store = open_store(place)
    record = read_record(store)
    run_status(store)
    drs_ray.verify(place, units=2).check()
    compact_run(store, record)
    repair_run(store, record)
    store.put(next(iter(store.list("counts/"))).key, b"not parquet")
    assert repair_run(store, record)  # moved aside
    drs_ray.certify(config)
    drs_ray.reduce(place, alpha=0.01)
    drs_ray.write_report([drs_ray.read_run(place)], place)
    assert requests >= {"PutObject", "GetObject", "ListObjectsV2", "DeleteObject"}
    needed = set().union(*(ACTIONS[name] for name in requests))
    statements = json.loads(POLICY.read_text())["Statement"]
    assert needed == {action for statement in statements for action in statement["Action"]}
    for statement in statements:
        of_bucket = statement["Action"] == ["s3:ListBucket"]
        assert re.fullmatch(r"arn:aws:s3:::my-bucket" + ("" if of_bucket else r"/\*"), statement["Resource"])
