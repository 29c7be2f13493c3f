"""A data set that the library datasets saved, through the command line: train, certify, verify, report."""

from __future__ import annotations

import re

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, disable_progress_bars

from drs_ray import read_certificates
from drs_ray.data.arrays import DIGITS, load_mnist5k
from tests.support.runs import drs_ray_here, run_data, write_config

FEATURES = Features({"image": Image(), "label": ClassLabel(names=list(DIGITS))})


def _saved(split: str, images: int) -> Dataset:
    source = load_mnist5k(split)
    files = [{"bytes": source.encoded(image_id)[0], "path": None} for image_id in range(images)]
    return Dataset.from_dict({"image": files, "label": source.labels(range(images)).tolist()}, features=FEATURES)


def test_train_certify_verify_and_report(tmp_path):
    disable_progress_bars()
    DatasetDict(train=_saved("train", 100), test=_saved("test", 4)).save_to_disk(tmp_path / "digits")
    data = run_data(tmp_path / "run") | {"dataset": {"name": "huggingface", "root": str(tmp_path / "digits")}}
    data["classifiers"] = [
        {"architecture": "digits-cnn", "checkpoint": str(tmp_path / f"{side}.safetensors"), "sigma": 0.25}
        for side in ("left", "right")
    ]
    data |= {"budget": {"selection": 20, "estimation": 100}, "engine": data["engine"] | {"precision": "float32"}}
    config = str(write_config(tmp_path / "config.yaml", data | {"training": {"epochs": 1}}))
    for words in (["train", config], ["certify", config], ["verify", str(tmp_path / "run"), "--images", "1"]):
        done = drs_ray_here(words)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr  # for example of other class names in the checkpoint
    table = read_certificates(tmp_path / "run")
    assert table["label"].to_pylist() == load_mnist5k("test").labels(range(4)).tolist()
    assert drs_ray_here(["report", str(tmp_path / "run")]).returncode == 0
    assert len(re.findall("data:image/png", (tmp_path / "run" / "report.html").read_text())) >= 4
