"""`drs-ray pack` and runs on what it wrote: the source's votes, from S3 too; broken images and changed data are noticed."""

from __future__ import annotations

import pytest

from drs_ray import certify
from drs_ray.config import parse_config
from drs_ray.data.arrays import ArrayDataset, load_mnist5k
from drs_ray.data.packing import pack_dataset
from drs_ray.models.checkpoints import load_checkpoint
from drs_ray.results.store import LocalStore, open_store
from tests.servers import BUCKET
from tests.support.runs import counts_digest, drs_ray, run_config, run_data, write_config


@pytest.fixture(scope="module")
def source_votes(tmp_path_factory):
    """The digest of the counts of a run on mnist5k itself."""
    return counts_digest(certify(run_config(tmp_path_factory.mktemp("source") / "run")).uri)


def _packed_run(output, root, *, address="inline", **dataset):
    data = run_data(output, address=address)
    data["dataset"] |= {"name": "parquet", "root": str(root), **dataset}
    return data


@pytest.mark.s3
@pytest.mark.ray
def test_packed_on_s3_by_the_command_line_and_certified_by_ray_workers_gives_the_sources_votes(
    tmp_path, seaweed, source_votes, local_ray
):
    place = f"s3://{BUCKET}/packed-mnist5k"
    config = write_config(tmp_path / "pack.yaml", {"dataset": {"name": "mnist5k", "split": "train"}})
    arguments = ["pack", str(config), place, "--set", "dataset.split=test", "--endpoint-url", seaweed.endpoint]
    done = drs_ray(arguments)
    assert done.returncode == 0, done.stderr
    assert "1,000 images (1 x 28 x 28, 10 classes) are packed in 1 objects" in done.stdout
    assert done.stdout.splitlines()[-1] == f"use: dataset: {{name: parquet, root: {place}, split: test}}"
    assert "1,000 of 1,000 images" in done.stderr
    again = drs_ray([*arguments, "--quiet"])
    assert "1,000 images (1 x 28 x 28, 10 classes) were packed" in again.stdout
    assert again.stderr == ""
    data = _packed_run(tmp_path / "run", place, address="auto", endpoint_url=seaweed.endpoint)
    result = certify(parse_config(data))
    assert counts_digest(result.uri) == source_votes
    assert result.dataset == "mnist5k"  # what the images are, not how they are stored


@pytest.mark.s3
def test_a_corrupt_image_on_s3_is_named_and_only_its_unit_is_set_aside(tmp_path, seaweed):
    place = f"s3://{BUCKET}/packed-corrupt"
    store = open_store(place, seaweed.endpoint)
    source = load_mnist5k("test")
    index, _ = pack_dataset(source, None, store, lambda done: None)
    key = index.shards[0].key
    shard = bytearray(store.get(key))
    image = source.encoded(4)[0]
    shard[shard.find(image) + len(image) // 2] ^= 1
    store.put(key, bytes(shard))
    config = write_config(tmp_path / "config.yaml", _packed_run(tmp_path / "run", place, endpoint_url=seaweed.endpoint))
    done = drs_ray(["certify", str(config)])
    assert done.returncode == 3, done.stderr
    assert f"image 4: {place}/{key}, row group 0: " in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "run" / "counts").rglob("*.parquet"))) == 6  # of 8: one unit per sub-image


def test_data_that_were_packed_anew_with_one_other_pixel_are_not_the_runs(tmp_path):
    source = load_mnist5k("test")
    pack_dataset(source, None, LocalStore(tmp_path / "packed"), lambda done: None)
    config = write_config(tmp_path / "config.yaml", _packed_run(tmp_path / "run", tmp_path / "packed"))
    assert drs_ray(["certify", str(config)]).returncode == 0
    (tmp_path / "moved").mkdir()
    (tmp_path / "packed" / "test").rename(tmp_path / "moved" / "test")
    verify = ["verify", str(tmp_path / "run"), "--units", "1"]
    done = drs_ray([*verify, "--set", f"dataset.root={tmp_path / 'moved'}"])
    assert done.returncode == 0, done.stderr
    pixels = source.pixels.copy()
    pixels[999, 0, 27, 27] ^= 1
    other = ArrayDataset("mnist5k", "test", 10, pixels, source.targets)
    pack_dataset(other, None, LocalStore(tmp_path / "packed"), lambda done: None)
    done = drs_ray(verify)
    assert done.returncode == 1
    assert "has digest" in done.stderr.splitlines()[-1]
    again = drs_ray(["certify", str(config)])
    assert again.returncode == 2
    assert "dataset.digest" in again.stderr


def test_training_reads_a_packed_split_and_notes_the_source(tmp_path):
    pack_dataset(load_mnist5k("train"), None, LocalStore(tmp_path / "packed"), lambda done: None)
    pack_dataset(load_mnist5k("test"), None, LocalStore(tmp_path / "packed"), lambda done: None)
    data = _packed_run(tmp_path / "run", tmp_path / "packed") | {
        "training": {"epochs": 1},
        "partition": {"name": "none"},
    }
    data["classifiers"] = [{"architecture": "digits-cnn", "checkpoint": str(tmp_path / "c.safetensors"), "sigma": 0.5}]
    config = write_config(tmp_path / "config.yaml", data)
    assert drs_ray(["train", str(config), "--quiet"]).returncode == 0
    metadata = load_checkpoint(tmp_path / "c.safetensors")[1]
    assert metadata is not None
    assert metadata.dataset == "mnist5k"
    done = drs_ray(["certify", str(config)])
    assert done.returncode == 0, done.stderr
    assert "was trained on" not in done.stderr


@pytest.mark.parametrize(
    ("content", "arguments", "code", "message"),
    [
        ("dataset: {name: cifar10}", [], 2, "dataset: cifar10 needs root"),
        ("partition: {name: none}", [], 2, "dataset: required key is missing"),
        ("dataset: {name: mnist5k, rot: x}", [], 2, "dataset.rot: unknown key; did you mean root?"),
        (
            "dataset: {name: mnist5k}",
            ["--set", "dataset.split=val"],
            2,
            "dataset.split of mnist5k must be train or test",
        ),
        ("dataset: {name: cifar10, root: nowhere}", [], 1, "root nowhere is not a directory"),
        (
            "dataset: {name: mnist5k, endpoint_url: 'http://x'}",
            [],
            2,
            "endpoint_url applies to parquet, not to mnist5k",
        ),
    ],
)
def test_what_cannot_be_packed_is_one_line(tmp_path, content, arguments, code, message):
    config = tmp_path / "config.yaml"
    config.write_text(content)
    done = drs_ray(["pack", str(config), str(tmp_path / "out"), *arguments])
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
