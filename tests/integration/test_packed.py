"""`drs-ray pack` and runs on what it wrote: the source's votes, from S3 too; broken and changed images are noticed."""

from __future__ import annotations

import os

import pytest

from drs_ray import certify
from drs_ray.checks.verify import verify
from drs_ray.cli import main
from drs_ray.config import parse_config
from drs_ray.data.arrays import ArrayDataset, load_mnist5k
from drs_ray.data.packing import pack_dataset
from drs_ray.engine.description import describe_run
from drs_ray.engine.observer import Observer
from drs_ray.errors import ConfigError, DataError
from drs_ray.models.checkpoints import load_checkpoint
from drs_ray.storage import LocalStore, open_store
from drs_ray.training.run import train_run
from tests.servers import BUCKET
from tests.support.runs import counts_digest, drs_ray, drs_ray_here, run_config, run_data, write_config


@pytest.fixture(scope="module")
def source_votes(tmp_path_factory):
    """The digest of the counts of a run on mnist5k itself."""
    return counts_digest(certify(run_config(tmp_path_factory.mktemp("source") / "run")).uri)


def _exit_code(monkeypatch, arguments):
    """Of the command line, in this process: seconds less than a process of its own."""
    monkeypatch.setattr("sys.argv", ["drs-ray", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def _packed_run(output, root, *, address="inline", **dataset):
    data = run_data(output, address=address)
    data["dataset"] |= {"name": "parquet", "root": str(root), **dataset}
    return data


@pytest.mark.s3
@pytest.mark.ray
def test_packed_on_s3_by_the_command_line_and_certified_by_ray_workers_gives_the_sources_votes(
    tmp_path, monkeypatch, capsys, seaweed, source_votes, ray_directory
):
    place = f"s3://{BUCKET}/packed-mnist5k"
    config = write_config(tmp_path / "pack.yaml", {"dataset": {"name": "mnist5k", "split": "train"}})
    arguments = ["pack", str(config), place, "--set", "dataset.split=test", "--endpoint-url", seaweed.endpoint]
    assert _exit_code(monkeypatch, arguments) == 0
    done = capsys.readouterr()
    assert "1,000 images (1 x 28 x 28, 10 classes) packed in 1 object," in done.out
    assert done.out.splitlines()[-1] == f"use: dataset: {{name: parquet, root: {place}, split: test}}"
    assert "1,000 of 1,000 images" in done.err
    assert _exit_code(monkeypatch, [*arguments, "--quiet"]) == 0
    again = capsys.readouterr()
    assert "1,000 images (1 x 28 x 28, 10 classes) packed already" in again.out
    assert again.err == ""
    data = _packed_run(tmp_path / "run", place, address="local", endpoint_url=seaweed.endpoint)
    run = write_config(tmp_path / "run.yaml", data)
    done = drs_ray(["certify", str(run)], env=os.environ | {"RAY_TMPDIR": ray_directory})
    assert done.returncode == 0, done.stderr
    assert "of mnist5k (test)" in done.stdout  # what the images are, not how they are stored
    assert counts_digest(tmp_path / "run") == source_votes


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
    done = drs_ray_here(["certify", str(config)])
    assert done.returncode == 3, done.stderr
    assert f"image 4: {place}/{key}, row group 0: " in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "run" / "counts").rglob("*.parquet"))) == 6  # of 8: one unit per sub-image


def test_data_that_were_packed_anew_with_one_other_pixel_are_not_the_runs(tmp_path):
    source = load_mnist5k("test")
    pack_dataset(source, None, LocalStore(tmp_path / "packed"), lambda done: None)
    config = parse_config(_packed_run(tmp_path / "run", tmp_path / "packed"))
    store = LocalStore(certify(config).uri)
    (tmp_path / "moved").mkdir()
    (tmp_path / "packed" / "test").rename(tmp_path / "moved" / "test")
    verify(store, 1, overrides=[f"dataset.root={tmp_path / 'moved'}"]).check()
    pixels = source.pixels.copy()
    pixels[999, 0, 27, 27] ^= 1
    other = ArrayDataset("mnist5k", "test", 10, pixels, source.targets)
    pack_dataset(other, None, LocalStore(tmp_path / "packed"), lambda done: None)
    with pytest.raises(DataError, match="has digest"):
        verify(store, 1)
    with pytest.raises(ConfigError, match=r"dataset\.digest"):
        certify(config)


def test_training_reads_a_packed_split_and_notes_the_source(tmp_path):
    for split in ("train", "test"):
        source = load_mnist5k(split)
        few = ArrayDataset("mnist5k", split, 10, source.pixels[:200], source.targets[:200])
        pack_dataset(few, None, LocalStore(tmp_path / "packed"), lambda done: None)
    data = _packed_run(tmp_path / "run", tmp_path / "packed") | {"partition": {"name": "none"}}
    data["classifiers"] = [{"architecture": "digits-cnn", "checkpoint": str(tmp_path / "c.safetensors"), "sigma": 0.5}]
    config = parse_config(data | {"training": {"epochs": 1}})
    (file,) = train_run(config)
    metadata = load_checkpoint(file)[1]
    assert metadata is not None
    assert metadata.dataset == "mnist5k"
    assert describe_run(config, NoWarnings()).dataset_name == "mnist5k"


class NoWarnings(Observer):
    """Fails at a warning, for example that a classifier was trained on another data set."""

    def event(self, message, kind="note", **fields):
        assert kind != "warning", message


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
def test_what_cannot_be_packed_is_one_line(tmp_path, monkeypatch, capsys, content, arguments, code, message):
    config = tmp_path / "config.yaml"
    config.write_text(content)
    found = _exit_code(monkeypatch, ["pack", str(config), str(tmp_path / "out"), *arguments])
    told = capsys.readouterr().err
    assert (found, len(told.splitlines())) == (code, 1), told
    assert message in told
    assert not (tmp_path / "out").exists()
