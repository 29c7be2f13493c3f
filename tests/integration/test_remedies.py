"""What an error says is to be done helps: it is provoked, its own words are followed, and the command succeeds."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from drs_ray import SmoothedClassifier, certify, make_partition
from drs_ray.errors import DataError
from tests.support.runs import drs_ray_here, run_config, run_data, write_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished") / "run"
    certify(run_config(place, images=6))
    return place


@dataclass(frozen=True)
class Here:
    """A copy of a finished run, and the config that made it."""

    run: Path
    config: Path

    def words(self, text: str) -> list[str]:
        """A command as messages write it, with the run or its config added where they leave it out."""
        words = [str(self.run) if word == "RUN" else word for word in shlex.split(text)]
        assert words.pop(0) == "drs-ray"
        if words[0] == "certify":
            return ["certify", str(self.config), "--quiet"]
        return words if str(self.run) in words else [*words, str(self.run)]

    def ok(self, text: str) -> None:
        done = drs_ray_here(self.words(text))
        assert done.returncode == 0, (text, done.stderr)

    def refused(self, text: str) -> str:
        done = drs_ray_here(self.words(text))
        assert done.returncode in (1, 2), (text, done.stdout)
        (line,) = [line for line in done.stderr.splitlines() if not line.startswith("certify: ")]
        assert line.startswith("error: ")
        return line


@pytest.fixture
def here(finished: Path, tmp_path: Path) -> Here:
    shutil.copytree(finished, tmp_path / "run")
    return Here(tmp_path / "run", write_config(tmp_path / "config.yaml", run_data(tmp_path / "run", images=6)))


def _cut_a_part(run: Path) -> None:
    part = sorted(run.glob("counts/**/*.parquet"))[1]
    part.write_bytes(part.read_bytes()[:-20])


def _lose_a_part(run: Path) -> None:
    sorted(run.glob("counts/**/*.parquet"))[1].unlink()


def _change_certificates(run: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    file = run / "certificates.parquet"
    pq.write_table(change(pq.read_table(file)), file)


def _name_no_rule(run: Path) -> None:
    _change_certificates(
        run, lambda table: table.replace_schema_metadata({**table.schema.metadata, b"drs_ray.rule": b"no such rule"})
    )


def _be_of_another_run(run: Path) -> None:
    _change_certificates(
        run, lambda table: table.replace_schema_metadata({**table.schema.metadata, b"drs_ray.run_id": b"0" * 16})
    )


def _lose_certificates(run: Path) -> None:
    (run / "certificates.parquet").unlink()


@pytest.mark.parametrize(
    ("break_it", "command"),
    [
        (_cut_a_part, "drs-ray reduce"),
        (_cut_a_part, "drs-ray compact"),
        (_cut_a_part, "drs-ray certify"),
        (_cut_a_part, "drs-ray audit"),
        (_lose_a_part, "drs-ray reduce"),
        (_lose_a_part, "drs-ray audit"),
        (_lose_a_part, "drs-ray certificate RUN 3"),
        (_name_no_rule, "drs-ray certificate RUN 0"),
        (_name_no_rule, "drs-ray audit"),
        (_name_no_rule, "drs-ray attack RUN --images 1 --steps 2"),
        (_be_of_another_run, "drs-ray report"),
        (_be_of_another_run, "drs-ray audit"),
        (_lose_certificates, "drs-ray report"),
        (_lose_certificates, "drs-ray export RUN --format csv"),
    ],
)
def test_the_commands_that_a_message_names_mend_the_run(
    here: Here, break_it: Callable[[Path], None], command: str
) -> None:
    break_it(here.run)
    message = here.refused(command)
    named = re.findall(r"`(drs-ray [^`]+)`", message)
    assert named, message
    for one in named:
        here.ok(one)
    if "resume the run" in message:
        here.ok("drs-ray certify")
    here.ok(command)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("run.json", "drs-ray certify"),
        ("extension.json", "drs-ray reduce"),
        ("sessions/x.json", "drs-ray status"),
    ],
)
def test_a_foreign_file_that_is_removed_as_a_message_says_is_no_longer_in_the_way(
    here: Here, name: str, command: str
) -> None:
    file = here.run / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("{}")
    message = here.refused(command)
    assert str(file) in message
    assert "remove it" in message
    file.unlink()
    here.ok(command)


def test_a_run_whose_record_was_changed_is_begun_in_another_place(here: Here, tmp_path: Path) -> None:
    record = json.loads((here.run / "run.json").read_text())
    record["config"]["classifiers"][0]["sigma"] = 0.75
    (here.run / "run.json").write_text(json.dumps(record))
    for command in ("drs-ray reduce", "drs-ray certify"):
        assert "restore it, or choose another output" in here.refused(command)
    there = write_config(tmp_path / "there.yaml", run_data(tmp_path / "there", images=6))
    assert drs_ray_here(["certify", str(there), "--quiet"]).returncode == 0


@pytest.mark.parametrize(
    ("wrong", "remedy", "right"),
    [
        (["certificate.pooled=true"], "set it to false or null", ["certificate.pooled=null"]),
        (["certificate.weights=[1, 2]", "certificate.vote=mean"], "remove it", ["certificate.weights=null"]),
        (["certificate.vote=mena"], "must be 'probit' or 'mean'", ["certificate.vote=mean"]),
        (["budget={stages: 3, estimation: 300, planned: 400}"], r"\(100, 200, 400\)", ["budget.estimation=200"]),
        (["budget.stages=12"], "use fewer stages", ["budget.stages=2"]),
        (["certificate.radius=3"], "use a smaller radius", ["certificate.radius={most}"]),
        (["partition.interleave=[2, 2]"], "remove it", ["partition.interleave=null"]),
        (["dataset.images.ids=[1, 2]"], "not both", ["dataset.images={ids: [1, 2]}"]),
        (["dataset.images.stop=2000"], "lower it", ["dataset.images.stop=3"]),
        (["engine.samples_per_unit=250"], "multiple of noise.block", ["engine.samples_per_unit=200"]),
        (["engine.cpus_per_worker=1000"], "lower it", ["engine.cpus_per_worker=1"]),
        (["classifiers.0.architecture=digits-cnn"], "train one with `drs-ray train`", None),
    ],
)  # fmt: skip
def test_a_config_that_is_mended_as_a_message_says_runs(
    here: Here, wrong: list[str], remedy: str, right: list[str] | None, tmp_path: Path
) -> None:
    output = ["--quiet", "--set", f"output={tmp_path}/new"]
    words = [word for override in wrong for word in ("--set", override)]
    refused = drs_ray_here(["certify", str(here.config), *output, *words])
    assert refused.returncode in (1, 2)
    assert re.search(remedy, refused.stderr), refused.stderr
    if right is None:  # a classifier to be trained
        right = [f"classifiers.{k}.{key}" for k in (0, 1) for key in (
            "architecture=digits-cnn", "arguments={width: 4}", f"checkpoint={tmp_path}/{k}.safetensors")]  # fmt: skip
        training = [word for one in [*right, "training.epochs=1"] for word in ("--set", one)]
        trained = drs_ray_here(["train", str(here.config), "--quiet", *training])
        assert trained.returncode == 0, trained.stderr
    most = re.search(r"certify (\S+) at most", refused.stderr)
    for override in right:
        words += ["--set", override.format(most=most[1]) if most else override]
    mended = drs_ray_here(["certify", str(here.config), *output, *words])
    assert mended.returncode == 0, mended.stderr


def _folder(root: Path, *names: str, split: str = "test", size: int = 8) -> None:
    for number, name in enumerate(names):
        (root / split / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size + number, size), (60 + 100 * number, 0, 0)).save(root / split / name / "1.png")


def _image_config(tmp_path: Path, **dataset: Any) -> Path:
    data = run_data(tmp_path / "images-run") | {"dataset": {"name": "folder", "root": str(tmp_path), **dataset}}
    data["partition"] = {"name": "none"}
    file = str(tmp_path / "a.safetensors")
    data["classifiers"] = [{"architecture": "digits-cnn", "arguments": {"width": 4}, "checkpoint": file, "sigma": 0.5}]
    return write_config(tmp_path / "images.yaml", data | {"training": {"epochs": 1, "batch": 2}})


def test_images_of_several_sizes_and_classes_in_another_order(tmp_path: Path) -> None:
    for split in ("train", "test"):
        _folder(tmp_path, "cat", "dog", split=split)
    plain = _image_config(tmp_path)
    refused = drs_ray_here(["certify", str(plain), "--quiet"])
    assert "set dataset.image_size" in refused.stderr
    sized = _image_config(tmp_path, image_size=8)
    assert drs_ray_here(["train", str(sized), "--quiet"]).returncode == 0
    assert drs_ray_here(["certify", str(sized), "--quiet"]).returncode == 0
    shutil.rmtree(tmp_path / "images-run")
    (tmp_path / "test" / "ant").mkdir()
    refused = drs_ray_here(["certify", str(sized), "--quiet"])
    assert "in dataset.classes" in refused.stderr, refused.stderr
    shutil.rmtree(tmp_path / "test" / "ant")
    for names, code in ((["dog", "cat"], 1), (["cat", "dog"], 0)):
        place = str(tmp_path / "-".join(names))
        source = _image_config(tmp_path, image_size=8, classes=names)
        assert drs_ray_here(["pack", str(source), place, "--quiet"]).returncode == 0
        done = drs_ray_here(["certify", str(_image_config(tmp_path, name="parquet", root=place)), "--quiet"])
        assert done.returncode == code, done.stderr
        assert ("of a parquet data set, where it is packed" in done.stderr) == bool(code)


def test_a_training_state_of_other_settings(tmp_path: Path) -> None:
    for split in ("train", "test"):
        _folder(tmp_path, "cat", split=split)
        _folder(tmp_path, "dog", split=split)
    config = _image_config(tmp_path)
    (tmp_path / "a.training.safetensors").write_bytes(b"not a state")
    refused = drs_ray_here(["train", str(config), "--quiet"])
    assert refused.stderr.strip().endswith("delete it to train anew")
    (tmp_path / "a.training.safetensors").unlink()
    assert drs_ray_here(["train", str(config), "--quiet"]).returncode == 0


def test_pixels_between_the_steps_of_8_bits() -> None:
    partition = make_partition("none", 4, 4, "packed")
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    x = torch.full((1, 1, 4, 4), 0.3001)

    def smoothed(**law: Any) -> SmoothedClassifier:
        return SmoothedClassifier(partition, [linear], sigmas=[0.5], num_classes=2, **law)

    with pytest.raises(DataError) as caught:
        smoothed().certify(x, n=100)
    said = re.search(r"SmoothedClassifier: (\w+)=\"(\w+)\"", str(caught.value))
    assert said is not None, str(caught.value)
    smoothed(**{said[1]: said[2]}).certify(x, n=100)
