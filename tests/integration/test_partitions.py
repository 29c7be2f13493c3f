"""Runs of interleaved partitions, end to end, and checkpoints that know which partition they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drs_ray import certify, read_run, reduce
from drs_ray.config import parse_config
from drs_ray.counts.run_record import identity, read_record
from drs_ray.errors import ClassifierError
from drs_ray.models.checkpoints import load_checkpoint
from drs_ray.report.summary import summarise
from drs_ray.storage import open_store
from drs_ray.training.run import train_run
from tests.support.runs import counts_digest, run_data


def interleaved(output: Path, rows: int, columns: int, **changed: Any) -> dict[str, Any]:
    data = run_data(output, images=6)
    data["partition"] = {"name": "interleave", "interleave": [rows, columns]}
    data["classifiers"] = [data["classifiers"][0] | changed] * (rows * columns)
    return data


@pytest.fixture(scope="module")
def quarters(tmp_path_factory):
    return certify(parse_config(interleaved(tmp_path_factory.mktemp("quarters") / "run", 2, 2)))


def test_four_sub_images_end_to_end(quarters):
    rows = quarters.certificates.to_pylist()
    assert quarters.record.sub_images == 4
    for row in rows:
        assert len(row["class_votes"]) == len(row["p_lower"]) == len(row["margin"]) == 4
        assert row["estimation_samples"] == [400] * 4
        assert row["samples"] == 4 * 450
        if not row["rule"].endswith("pooled"):
            assert row["rule"] == "probit pairs staircase"
            assert row["radius"] == pytest.approx(max(0, sum(row["margin"]) / 2), rel=1e-12)
    assert (quarters.radius > 0).any()
    again = reduce(quarters.uri, alpha=0.01)
    assert (again.radius >= quarters.radius).all()
    assert again.certificates["class_votes"].equals(quarters.certificates["class_votes"])


def test_the_partition_is_named_in_what_is_read_out(quarters):
    assert (
        dict(summarise(read_run(quarters.uri), "quarters").provenance)["partition"] == "interleave-2x2, layout packed"
    )


def test_four_sub_images_do_not_depend_on_the_cut_of_the_work(tmp_path, quarters):
    data = interleaved(tmp_path / "run", 2, 2)
    data["engine"] |= {"images_per_unit": 4, "samples_per_unit": 200}
    result = certify(parse_config(data))
    assert result.record.run_id == quarters.record.run_id
    assert counts_digest(tmp_path / "run") == counts_digest(quarters.uri)


def test_the_quarters_read_other_pixels_and_other_noise(quarters):
    votes = np.array(quarters.certificates["class_votes"].to_pylist())
    assert len(np.unique(votes, axis=1).T) == 4


def test_other_partitions_are_other_runs_and_old_ones_keep_their_identity(quarters, tmp_path):
    record = read_record(open_store(quarters.uri))
    ids = {record.run_id}
    for rows, columns in ((1, 4), (4, 1)):
        ids.add(certify(parse_config(interleaved(tmp_path / f"{rows}", rows, columns))).record.run_id)
    assert len(ids) == 3
    config = parse_config(run_data(tmp_path / "run"))
    section = identity(config, record.dataset, (0,), ("a", "b"))["partition"]
    assert section == {"name": "checkerboard", "layout": "packed"}  # as before there were others


def test_checkpoints_tell_two_by_two_from_one_by_four(tmp_path):
    data = interleaved(tmp_path / "run", 2, 2)
    data["training"] = {"epochs": 1, "split": "test"}
    data["classifiers"] = [
        {"architecture": "digits-cnn", "checkpoint": str(tmp_path / f"{k}.safetensors"), "sigma": 0.5} for k in range(4)
    ]
    train_run(parse_config(data), sub_images=[1])
    _, metadata = load_checkpoint(tmp_path / "1.safetensors")
    assert (metadata.partition, metadata.sub_images, metadata.image_shape) == ("interleave-2x2", (1,), (1, 14, 14))
    data["partition"]["interleave"] = [1, 4]
    data["classifiers"][0] = interleaved(tmp_path, 1, 4)["classifiers"][0]
    with pytest.raises(ClassifierError, match="trained for partition interleave-2x2, the run needs interleave-1x4"):
        certify(parse_config(data))
