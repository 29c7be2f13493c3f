"""The config: every mistake gets one line with path, rule, value and remedy; overrides; schema; the run's identity."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from drs_ray.config import (
    CertificateConfig,
    RunConfig,
    apply_overrides,
    json_schema,
    load_config,
    load_dataset_config,
    parse_config,
)
from drs_ray.counts.run_record import DatasetRecord, identity, run_id
from drs_ray.errors import ConfigError

DRS = """
dataset: {name: mnist5k, images: {skip: 5}}
partition: {name: checkerboard}
classifiers:
  - {architecture: small-cnn, checkpoint: left.safetensors, sigma: 0.5}
  - {architecture: small-cnn, checkpoint: right.safetensors, sigma: 0.25}
output: runs/x
"""


def drs(**sections: Any) -> dict[str, Any]:
    """The config above; a section that is a mapping is merged, anything else replaces it."""
    data: dict[str, Any] = yaml.safe_load(DRS)
    for name, value in sections.items():
        there = data.get(name)
        data[name] = there | value if isinstance(there, dict) and isinstance(value, dict) else value
    return data


def classifiers(**changed: Any) -> list[dict[str, Any]]:
    """Two, the second changed."""
    first, second = drs()["classifiers"]
    return [first, second | changed]


def errors_of(data: Mapping[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse_config(data)
    return str(error.value).splitlines()


def test_a_short_config_is_enough() -> None:
    config = parse_config(drs())
    assert config.sigmas == (0.5, 0.25)
    assert config.partition.sub_images == 2
    assert config.partition.layout == "packed"
    assert config.output.uri == "runs/x"
    assert (config.certificate.alpha, config.certificate.vote, config.certificate.weights) == (0.001, "probit", None)
    assert (config.budget.selection, config.budget.estimation) == (100, 100_000)


@pytest.mark.parametrize(("interleave", "k"), [((2, 2), 4), ((1, 2), 2), ((3, 1), 3), ((8, 8), 64)])
def test_interleaved_partitions(interleave: tuple[int, int], k: int) -> None:
    partition = {"name": "interleave", "interleave": list(interleave)}
    config = parse_config(drs(partition=partition, classifiers=[classifiers()[0]] * k))
    assert config.partition.sub_images == k
    assert config.partition.label == f"interleave-{interleave[0]}x{interleave[1]}"
    assert config.certificate.rule(config.sigmas).confidence == "staircase"
    assert config.updated("noise", seed=1).partition == config.partition
    jsonschema.validate(config.model_dump(mode="json"), json.loads(json_schema()))


@pytest.mark.parametrize("name", ["checkerboard", "checkerboard-2024"])
def test_the_other_partitions_are_their_own_label(name: str) -> None:
    config = parse_config(drs(partition={"name": name, "layout": "filled"}))
    assert config.partition.label == name
    assert config.partition.sub_images == 2
    assert config.certificate.rule(config.sigmas).confidence == "staircase"


def test_a_classifier_is_complete_when_all_its_weights_are_in_files() -> None:
    def complete(**changed: Any) -> bool:
        return parse_config(drs(classifiers=classifiers(**changed))).classifiers[1].is_complete

    assert not complete(checkpoint=None)
    assert complete(checkpoint="a.pt")
    assert not complete(checkpoint="a.pt", denoiser={"architecture": "a:b"})
    assert complete(checkpoint="a.pt", denoiser={"architecture": "dncnn", "checkpoint": "b.pt"})


def test_pixels_and_denoisers_survive_a_round_trip() -> None:
    given = {
        "architecture": "timm:resnet18",
        "checkpoint": "a.pt",
        "pixels": {"resize": [64, 32], "range": [-1, 1], "mean": [0.1, 0.2, 0.3]},
        "entry": "ema.weights",
        "denoiser": {"architecture": "dncnn", "checkpoint": "d.pt", "entry": "best"},
    }
    config = parse_config(drs(classifiers=classifiers(**given)))
    assert config.classifiers[1].pixels is not None
    assert config.classifiers[1].pixels.record == {"resize": [64, 32], "range": [-1, 1], "mean": [0.1, 0.2, 0.3]}
    assert config.updated("noise", seed=1).classifiers == config.classifiers
    jsonschema.validate(config.model_dump(mode="json"), json.loads(json_schema()))


@pytest.mark.parametrize(
    ("changed", "doubt"),
    [
        ({"sigma": 64}, "classifiers.1.sigma: 64 is in pixel units, .* give 64/255 = 0.251"),
        ({"pixels": {"mean": [125.0]}}, r"classifiers.1.pixels.mean: 125 does not fit .*range: \[0, 255\]"),
        ({"pixels": {"mean": [0.5], "std": [58.0]}}, "classifiers.1.pixels.std: 58 does not fit"),
        ({"pixels": {"range": [-1, 1], "mean": [-2.0]}}, "black is -1 and white is 1"),
    ],
)
def test_numbers_in_8_bit_steps_are_doubted(changed: dict[str, Any], doubt: str) -> None:
    (found,) = parse_config(drs(classifiers=classifiers(**changed))).unlikely_settings
    assert re.search(doubt, found)
    assert "\n" not in found


@pytest.mark.parametrize(
    "changed",
    [{}, {"sigma": 2.0}, {"pixels": {"range": [0, 255], "mean": [125.0], "std": [58.0]}}, {"pixels": {"std": [1.0]}}],
)
def test_usual_numbers_are_not_doubted(changed: dict[str, Any]) -> None:
    assert parse_config(drs(classifiers=classifiers(**changed))).unlikely_settings == ()


def test_a_config_cannot_be_changed() -> None:
    config = parse_config(drs())
    with pytest.raises(ValidationError, match="frozen"):
        config.budget.estimation = 5  # type: ignore[misc]


# section values -> path of the key, words of the rule and the remedy, the value as shown
BAD: list[tuple[dict[str, Any], str, str, str]] = [
    ({"dataset": {"name": "cifar"}}, "dataset.name", "must be 'mnist5k', 'mnist', 'cifar10'", "'cifar'"),
    ({"dataset": {"name": "cifar10"}}, "dataset", "cifar10 needs root: the directory that holds the data set", ""),
    ({"dataset": {"image_size": 32}}, "dataset", "image_size applies to folder, imagenet, tiny-imagenet, hugg", ""),
    ({"dataset": {"classes": ["a", "b"]}}, "dataset", "classes applies to folder, imagenet, tiny-imagenet, hugg", ""),
    ({"dataset": {"image_column": "img"}}, "dataset", "image_column applies to huggingface, not to mnist5k", ""),
    ({"dataset": {"label_column": "fine"}}, "dataset", "label_column applies to huggingface, not to mnist5k", ""),
    ({"dataset": {"channels": 3}}, "dataset", "channels applies to huggingface, not to mnist5k", ""),
    ({"dataset": {"channels": 2}}, "dataset.channels", "must be 1 or 3", "2"),
    ({"dataset": {"classes": ["a"]}}, "dataset.classes", "must have at least 2 entries", "['a']"),
    ({"dataset": {"classes": ["a", "b", "a"]}}, "dataset.classes", "names 'a' twice: a class has one number", "'a'"),
    ({"dataset": {"classes": ["a", True]}}, "dataset.classes.1", "must be text", "True"),
    ({"dataset": {"classes": "nowhere.txt"}}, "dataset.classes", "must have a class name per line", "nowhere.txt"),
    ({"dataset": {"images": {"skip": 0}}}, "dataset.images.skip", "must be >= 1", "0"),
    ({"dataset": {"images": {"start": -1}}}, "dataset.images.start", "must be >= 0", "-1"),
    ({"dataset": {"images": {"start": 5, "stop": 5}}}, "dataset.images", "stop must be > start", "start=5 stop=5"),
    ({"dataset": {"images": {"ids": []}}}, "dataset.images", "ids is empty: name at least one image id", ""),
    ({"dataset": {"images": {"ids": [3, 3]}}}, "dataset.images", "ids has duplicates", ""),
    ({"dataset": {"images": {"ids": [1], "skip": 2}}}, "dataset.images", "either ids or start/stop/skip, not both", ""),
    (
        {"partition": {"name": "stripes"}},
        "partition.name",
        "must be 'none', 'checkerboard', 'checkerboard-2024' or 'interleave'",
        "'stripes'",
    ),
    ({"partition": {"name": "interleave"}}, "partition", "needs interleave: [rows, columns], for example [2, 2]", ""),
    ({"partition": {"interleave": [2, 2]}}, "partition", "applies to the name interleave, not to checkerboard", ""),
    ({"partition": {"name": "interleave", "interleave": [1, 1]}}, "partition", "2 to 64 sub-images", "[1, 1] makes 1"),
    ({"partition": {"name": "interleave", "interleave": [13, 5]}}, "partition", "2 to 64 sub-images", "makes 65"),
    ({"partition": {"name": "interleave", "interleave": [0, 2]}}, "partition.interleave", "numbers >= 1", "[0, 2]"),
    ({"partition": {"name": "interleave", "interleave": [2]}}, "partition.interleave", "two whole numbers", "[2]"),
    ({"partition": {"name": "interleave", "interleave": [2, 1.5]}}, "partition.interleave", "two whole", "[2, 1.5]"),
    ({"partition": {"name": "interleave", "interleave": [True, 2]}}, "partition.interleave", "two whole", "[True, 2]"),
    ({"partition": {"name": "interleave", "interleave": 4}}, "partition.interleave", "two whole numbers", "4"),
    ({"partition": {"name": "interleave", "interleave": [2, 2]}}, "classifiers", "interleave-2x2 has 4", "got 2"),
    ({"partition": {"layout": "sparse"}}, "partition.layout", "must be 'packed', 'masked' or 'filled'", "'sparse'"),
    (
        {"partition": {"name": "none"}},
        "classifiers",
        "must have one entry per sub-image: partition none has 1",
        "got 2",
    ),
    ({"classifiers": classifiers()[:1]}, "classifiers", "partition checkerboard has 2", "got 1"),
    ({"classifiers": []}, "classifiers", "must have at least 1 entry", "[]"),
    ({"noise": {"law": "uniform"}}, "noise.law", "must be 'lattice'", "'uniform'"),
    ({"noise": {"seed": -1}}, "noise.seed", "must be >= 0", "-1"),
    ({"noise": {"seed": 2**63}}, "noise.seed", "must be < 9223372036854775808", str(2**63)),
    ({"noise": {"block": 0}}, "noise.block", "must be >= 1", "0"),
    ({"budget": {"selection": 0}}, "budget.selection", "must be >= 1", "0"),
    ({"budget": {"estimation": 0}}, "budget.estimation", "must be >= 1", "0"),
    ({"budget": {"estimation": -100}}, "budget.estimation", "must be >= 1", "-100"),
    ({"budget": {"estimation": 1.5}}, "budget.estimation", "whole number", "1.5"),
    ({"budget": {"estimation": "many"}}, "budget.estimation", "whole number", "'many'"),
    ({"budget": {"estimation": 10**12}}, "budget.estimation", "must be <= 1000000000", "1000000000000"),
    ({"engine": {"address": "cluster"}}, "engine.address", "must be inline, local, auto, ray://", "'cluster'"),
    ({"engine": {"workers": 0}}, "engine.workers", "must be >= 1", "0"),
    ({"engine": {"device": "tpu"}}, "engine.device", "must be 'auto', 'cpu' or 'cuda'", "'tpu'"),
    ({"engine": {"batch": 0}}, "engine.batch", "must be >= 1", "0"),
    ({"engine": {"precision": "float16"}}, "engine.precision", "must be 'auto', 'float32' or 'bfloat16'", "'float16'"),
    ({"engine": {"compile": "maybe"}}, "engine.compile", "must be auto, true or false", "'maybe'"),
    ({"engine": {"gpus_per_worker": -0.5}}, "engine.gpus_per_worker", "must be >= 0", "-0.5"),
    (
        {"engine": {"samples_per_unit": 1500}},
        "engine.samples_per_unit",
        "must be a multiple of noise.block (1000)",
        "1500",
    ),
    ({"certificate": {"alpha": 0}}, "certificate.alpha", "must be in (0, 1)", "0"),
    ({"certificate": {"alpha": 1}}, "certificate.alpha", "must be in (0, 1)", "1"),
    ({"certificate": {"alpha": 1.5}}, "certificate.alpha", "must be in (0, 1)", "1.5"),
    ({"certificate": {"alpha": float("nan")}}, "certificate.alpha", "must be a finite number", "nan"),
    ({"certificate": {"vote": "median"}}, "certificate.vote", "must be 'probit' or 'mean'", "'median'"),
    ({"certificate": {"confidence": "none"}}, "certificate.confidence", "must be 'auto', 'bonferroni' or ", "'none'"),
    ({"certificate": {"weights": [1.0]}}, "certificate.weights", "of which there are 2", "got 1"),
    ({"certificate": {"weights": [1.0, 0]}}, "certificate.weights.1", "must be > 0", "0"),
    (
        {"certificate": {"weights": [1.0, 2.0], "vote": "mean"}},
        "certificate.weights",
        "applies to the probit vote, not to mean; remove it",
        "",
    ),
    ({"certificate": {"radii": []}}, "certificate.radii", "must have at least 1 entry", "[]"),
    ({"certificate": {"radius": 0}}, "certificate.radius", "must be > 0", "0"),
    ({"certificate": {"radii": [0.5, 0.25]}}, "certificate.radii", "must be strictly increasing", "[0.5, 0.25]"),
    ({"certificate": {"radii": [0.5, 0.5]}}, "certificate.radii", "must be strictly increasing", "[0.5, 0.5]"),
    ({"output": ""}, "output.uri", "at least 1 character", "''"),
    ({"output": {"uri": "x", "endpoint_url": "ftp://h"}}, "output.endpoint_url", "https?://", "'ftp://h'"),
    ({"training": {"epochs": 0}}, "training.epochs", "must be >= 1", "0"),
    ({"training": {"learning_rate": 0}}, "training.learning_rate", "must be > 0", "0"),
]


@pytest.mark.parametrize(("sections", "path", "rule", "value"), BAD, ids=[f"{bad[1]} {bad[3]}" for bad in BAD])
def test_a_bad_value_gets_one_line(sections: dict[str, Any], path: str, rule: str, value: str) -> None:
    lines = errors_of(drs(**sections))
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"config: {path}")
    assert rule in lines[0]
    assert value in lines[0].removeprefix(f"config: {path}")
    assert len(lines[0]) < 250


BAD_CLASSIFIERS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"sigma": 0}, "classifiers.1.sigma", "must be >= 0.001", "0"),
    ({"sigma": -1}, "classifiers.1.sigma", "must be >= 0.001", "-1"),
    ({"sigma": 101}, "classifiers.1.sigma", "must be <= 100", "101"),
    ({"sigma": float("inf")}, "classifiers.1.sigma", "must be a finite number", "inf"),
    ({"sigma": "loud"}, "classifiers.1.sigma", "number", "'loud'"),
    ({"architecture": ""}, "classifiers.1.architecture", "at least 1 character", "''"),
    ({"sgima": 1}, "classifiers.1.sgima", "unknown key; did you mean sigma?", ""),
    ({"pixels": {"range": [255, 0]}}, "classifiers.1.pixels.range", "must be [black, white] with black < white", "255"),
    ({"pixels": {"range": [0, float("inf")]}}, "classifiers.1.pixels.range.1", "must be a finite number", "inf"),
    ({"pixels": {"resize": [224, 0]}}, "classifiers.1.pixels.resize.1", "must be >= 1", "0"),
    ({"pixels": {"std": [0.2, 0]}}, "classifiers.1.pixels.std.1", "must be > 0", "0"),
    ({"pixels": {"means": [0.2]}}, "classifiers.1.pixels.means", "unknown key; did you mean mean?", ""),
    (
        {"pixels": {"range": [0, 255]}, "arguments": {"mean": [0.5], "std": [0.2]}},
        "classifiers.1",
        "arguments has mean and std: name all that is done to pixels under pixels",
        "",
    ),
    ({"denoiser": {"checkpoint": "a.pt"}}, "classifiers.1.denoiser.architecture", "required key is missing", ""),
    ({"checkpoint": None, "entry": "ema"}, "classifiers.1", "entry is a part of a checkpoint: name the checkpoint", ""),
    (
        {"architecture": "torch.export", "entry": "ema"},
        "classifiers.1",
        "entry: a program of torch.export has none",
        "",
    ),
    (
        {"denoiser": {"architecture": "a:b", "entry": "ema"}},
        "classifiers.1.denoiser",
        "entry is a part of a checkpoint",
        "",
    ),
    ({"checkpoint": None, "members": ["b.pt"]}, "classifiers.1", "name the first as checkpoint", ""),
    ({"members": ["b.pt", "b.pt"]}, "classifiers.1", "members must be other checkpoints, got b.pt twice", ""),
    ({"checkpoint": "a.pt", "members": ["a.pt"]}, "classifiers.1", "members must be other checkpoints, got a.pt", ""),
    ({"denoiser": "dncnn"}, "classifiers.1.denoiser", "must be a mapping of keys to values", "'dncnn'"),
]


@pytest.mark.parametrize(
    ("changed", "path", "rule", "value"), BAD_CLASSIFIERS, ids=[str(b[0]) for b in BAD_CLASSIFIERS]
)
def test_a_bad_classifier_is_named_by_its_number(changed: dict[str, Any], path: str, rule: str, value: str) -> None:
    lines = errors_of(drs(classifiers=classifiers(**changed)))
    mine = [line for line in lines if line.startswith(f"config: {path}: ")]
    assert len(mine) == 1
    assert rule in mine[0]
    assert value in mine[0]


@pytest.mark.parametrize("changed", [bad[0] for bad in BAD_CLASSIFIERS], ids=str)
def test_a_bad_classifier_of_two_gets_one_line(changed: dict[str, Any]) -> None:
    assert len(errors_of(drs(classifiers=classifiers(**changed)))) == 1


@pytest.mark.parametrize(
    "sections",
    [
        {"partition": {"name": "none"}, "classifiers": [{"architecture": "small-cnn", "sigma": -1}]},
        {"certificate": {"radii": [-1]}},
    ],
    ids=["classifiers", "radii"],
)
def test_a_list_whose_only_entry_is_bad_gets_one_line(sections: dict[str, Any]) -> None:
    assert len(errors_of(drs(**sections))) == 1


@pytest.mark.parametrize("name", ["radii", "weights"])
def test_a_bad_number_of_a_list_is_named_by_its_place(name: str) -> None:
    lines = errors_of(drs(certificate={name: [0.5, -1]}))
    assert any(line.startswith(f"config: certificate.{name}.1: must be >") and line.endswith("-1") for line in lines)


@pytest.mark.parametrize("key", ["dataset", "partition", "classifiers", "output"])
def test_a_missing_section_is_named(key: str) -> None:
    data = drs()
    del data[key]
    assert errors_of(data) == [f"config: {key}: required key is missing; add it (`drs-ray schema` lists all keys)"]


@pytest.mark.parametrize("key", ["sigma", "architecture"])
def test_a_missing_key_is_named(key: str) -> None:
    data = drs()
    del data["classifiers"][0][key]
    assert f"config: classifiers.0.{key}: required key is missing; add it" in "\n".join(errors_of(data))


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"datset": {}}, "datset: unknown key; did you mean dataset?"),
        ({"noise": {"sed": 1}}, "noise.sed: unknown key; did you mean seed?"),
        ({"budget": {"estimations": 1}}, "budget.estimations: unknown key; did you mean estimation?"),
        ({"dataset": {"images": {"step": 2}}}, "dataset.images.step: unknown key; did you mean stop?"),
        ({"certificate": {"Alpha": 0.1}}, "certificate.Alpha: unknown key; did you mean alpha?"),
        ({"noise": {"xyzzy": 1}}, "noise.xyzzy: unknown key; allowed here: block, law, seed"),
    ],
)
def test_unknown_keys_get_a_suggestion(sections: dict[str, Any], line: str) -> None:
    assert errors_of(drs(**sections)) == [f"config: {line}"]


@pytest.mark.parametrize("key", ["norm", "p", "linf", "l1", "l_inf", "threat_model", "patch_size", "epsilon"])
def test_who_asks_for_another_norm_is_told_what_l2_gives(key: str) -> None:
    (line,) = errors_of(drs(certificate={key: "linf"}))
    assert line.startswith(f"config: certificate.{key}: unknown key; certificates are of l2 norms; ")
    assert line.endswith("linf norms below r / sqrt(d), d = channels x height x width")


@pytest.mark.parametrize("key", ["alhpa", "vot", "radiuss", "pooling", "level"])
def test_other_unknown_keys_of_the_certificate_are_as_anywhere(key: str) -> None:
    (line,) = errors_of(drs(certificate={key: 1}))
    assert "did you mean" in line or "allowed here" in line


def test_the_norms_that_l2_gives() -> None:
    """|x|_2 <= |x|_1, and |x|_2 <= sqrt(d) |x|_inf, with equality for a constant."""
    rng = np.random.default_rng(0)
    for d in (1, 3, 784):
        x = rng.normal(size=(100, d))
        l1, l2, linf = (np.linalg.norm(x, order, axis=1) for order in (1, 2, np.inf))
        assert np.all(l2 <= l1 * (1 + 1e-12))
        assert np.all(l2 <= math.sqrt(d) * linf * (1 + 1e-12))


def test_several_mistakes_get_a_line_each() -> None:
    lines = errors_of(drs(budget={"estimation": 0}, certificate={"alpha": 2}, noise={"sed": 1}))
    assert sorted(line.split(": ")[1] for line in lines) == ["budget.estimation", "certificate.alpha", "noise.sed"]


def test_a_long_value_is_cut() -> None:
    (line,) = errors_of(drs(dataset={"name": "x" * 10_000}))
    assert len(line) < 250


class TestFiles:
    def test_read(self, tmp_path: Path) -> None:
        file = tmp_path / "drs.yaml"
        file.write_text(DRS)
        assert load_config(file) == parse_config(drs())
        assert load_config(str(file), ["budget.estimation=5"]).budget.estimation == 5

    def test_the_file_is_named_in_every_line(self, tmp_path: Path) -> None:
        file = tmp_path / "drs.yaml"
        file.write_text(DRS + "budget: {estimation: 0, selection: 0}\n")
        with pytest.raises(ConfigError) as error:
            load_config(file)
        lines = str(error.value).splitlines()
        assert len(lines) == 2
        assert all(line.startswith(f"{file}: budget.") for line in lines)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("dataset: [", "not valid YAML"),
            ("a: b: c", "not valid YAML"),
            ("", "must be a mapping of sections (dataset, partition, ...), got None"),
            ("- 1", "must be a mapping of sections (dataset, partition, ...), got [1]"),
            ("just words", "must be a mapping of sections"),
        ],
    )
    def test_not_a_config(self, tmp_path: Path, text: str, message: str) -> None:
        file = tmp_path / "bad.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError) as error:
            load_config(file)
        assert str(error.value).startswith(f"config {file}: ")
        assert message in str(error.value)
        assert "\n" not in str(error.value)

    def test_missing_and_unreadable(self, tmp_path: Path) -> None:
        (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
        for file in (tmp_path / "none.yaml", tmp_path, tmp_path / "binary.yaml"):
            with pytest.raises(ConfigError) as error:
                load_config(file)
            assert str(error.value).startswith(f"config {file}: cannot be read (")
            assert str(error.value).endswith("; give the path of a YAML file")

    def test_a_yaml_date_is_a_bad_value_like_any_other(self, tmp_path: Path) -> None:
        file = tmp_path / "date.yaml"
        file.write_text(DRS.replace("name: mnist5k", "name: 2026-01-01"))
        with pytest.raises(ConfigError, match=r"dataset\.name: "):
            load_config(file)


class TestVariables:
    """$NAME and ${NAME} in paths of a config file, and in those alone."""

    PATHS: Mapping[str, tuple[str | int, ...]] = {
        "dataset.root": ("dataset", "root"),
        "classifiers.0.checkpoint": ("classifiers", 0, "checkpoint"),
        "classifiers.1.members.0": ("classifiers", 1, "members", 0),
        "classifiers.1.denoiser.checkpoint": ("classifiers", 1, "denoiser", "checkpoint"),
        "training.start_from": ("training", "start_from"),
        "output.uri": ("output", "uri"),
    }
    THERE = ("classifiers.1.denoiser.architecture=dncnn", "classifiers.1.members=[b.pt]")

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        (tmp_path / "drs.yaml").write_text(DRS)
        return tmp_path / "drs.yaml"

    @staticmethod
    def path_in(config: RunConfig, path: tuple[str | int, ...]) -> object:
        found: Any = config
        for part in path:
            found = found[part] if isinstance(part, int) else getattr(found, part)
        return found

    def all_of(self, value: str) -> list[str]:
        return [*self.THERE, *(f"{key}={value}" for key in self.PATHS)]

    @pytest.mark.parametrize(
        ("text", "path"),
        [
            ("$SCRATCH/run", "/scratch/me/run"),
            ("${SCRATCH}/run", "/scratch/me/run"),
            ("${SCRATCH}_2/$JOB-a", "/scratch/me_2/7-a"),
            ("s3://bucket-$JOB/a", "s3://bucket-7/a"),
            ("/a/$$JOB/b$$", "/a/$JOB/b$"),
            ("/a/b$/$-/~/$1", "/a/b$/$-/~/$1"),
        ],
    )
    def test_every_path_of_a_file_is_expanded(
        self, file: Path, text: str, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SCRATCH", "/scratch/me")
        monkeypatch.setenv("JOB", "7")
        config = load_config(file, self.all_of(text))
        assert [self.path_in(config, keys) for keys in self.PATHS.values()] == [path] * len(self.PATHS)
        assert load_dataset_config(file, [f"dataset.root={text}"]).root == path

    def test_no_path_of_the_schema_is_forgotten(self) -> None:
        """Whatever its description calls a path, a directory or a URI; classes may be a file, and are read at once."""
        found = set()
        for name, section in {**json.loads(json_schema())["$defs"], "": {}}.items():
            for key, item in section.get("properties", {}).items():
                if re.search(r"[Dd]irectory|\bpath\b|s3://|As a classifier's", item.get("description", "")):
                    found.add((name.removesuffix("Config").lower(), key))
        assert found - {("dataset", "split"), ("dataset", "classes"), ("denoiser", "entry")} == {
            ("dataset", "root"),
            ("classifier", "checkpoint"),
            ("classifier", "members"),
            ("denoiser", "checkpoint"),
            ("training", "start_from"),
            ("output", "uri"),
        }

    def test_a_file_of_class_names(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (file.parent / "names.txt").write_text("cat\ndog\n")
        folder = ["dataset.name=folder", "dataset.root=x", "dataset.classes=$HERE/names.txt"]
        monkeypatch.setenv("HERE", str(file.parent))
        assert load_config(file, folder).dataset.classes == ("cat", "dog")
        monkeypatch.delenv("HERE")
        with pytest.raises(ConfigError, match=r"^\S+: dataset.classes: the environment variable HERE is not set; "):
            load_config(file, folder)

    @pytest.mark.parametrize("value", [None, ""])
    def test_a_variable_that_is_not_set_is_named_with_the_key(
        self, file: Path, value: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("NOT_HERE", raising=False)
        if value is not None:
            monkeypatch.setenv("NOT_HERE", value)
        for key in self.PATHS:
            with pytest.raises(ConfigError) as error:
                load_config(file, [*self.THERE, f"{key}=$NOT_HERE/x"])
            assert str(error.value) == (
                f"{file}: {key}: the environment variable NOT_HERE is not set; set it, or write $$ for a dollar sign, "
                "got '$NOT_HERE/x'"
            )
        with pytest.raises(ConfigError, match=r"output.uri: a variable must be \$NAME or \$\{NAME\}; write \$\$ "):
            load_config(file, ["output=${NOT_HERE:-x}/run"])

    def test_what_is_read_once_is_not_read_again(self, file: Path) -> None:
        """A config in a run's record is expanded: it is used on other machines, and may have dollar signs."""
        config = load_config(file, ["output=/a/$$b"])
        assert config.output.uri == "/a/$b"
        assert config.updated("noise", seed=1).output.uri == "/a/$b"
        assert RunConfig.model_validate_json(config.model_dump_json()).output.uri == "/a/$b"


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "path", "value"),
        [
            ("budget.estimation=1000", ("budget", "estimation"), 1000),
            ("certificate.alpha=1e-3", ("certificate", "alpha"), 0.001),
            ("certificate.radii=[0, 0.5]", ("certificate", "radii"), (0.0, 0.5)),
            ("certificate.weights=null", ("certificate", "weights"), None),
            ("classifiers.1.sigma=0.75", ("classifiers", 1, "sigma"), 0.75),
            ("classifiers.0.arguments.width=16", ("classifiers", 0, "arguments", "width"), 16),
            ("dataset.images.skip=20", ("dataset", "images", "skip"), 20),
            ("dataset.download=true", ("dataset", "download"), True),
            ("output=s3://bucket/a=b", ("output", "uri"), "s3://bucket/a=b"),
            ("output.endpoint_url=http://h:1", ("output", "endpoint_url"), "http://h:1"),
            ("engine.address=ray://h:10001", ("engine", "address"), "ray://h:10001"),
        ],
    )
    def test_set(self, override: str, path: tuple[str | int, ...], value: object) -> None:
        found: Any = parse_config(apply_overrides(drs(), [override]))
        for part in path:
            found = found[part] if isinstance(part, int) or isinstance(found, dict) else getattr(found, part)
        assert found == value

    def test_of_sections_that_an_alias_repeats_one_alone_is_set(self, tmp_path: Path) -> None:
        text = yaml.safe_dump(drs() | {"classifiers": []}, sort_keys=False)
        section = "{architecture: digits-cnn, checkpoint: both.safetensors, sigma: 0.5}"
        file = tmp_path / "config.yaml"
        file.write_text(text.replace("classifiers: []", f"classifiers: [&half {section}, *half]"))
        assert load_config(file).networks == ((0, 1),)
        config = load_config(file, ["classifiers.1.checkpoint=other.safetensors"])
        assert [classifier.checkpoint for classifier in config.classifiers] == ["both.safetensors", "other.safetensors"]
        assert config.networks == ((0,), (1,))

    @pytest.mark.parametrize("value", ["&a [*a]", "{x: &a [*a]}", "&a {x: *a}", "&a [[*a], 1]"])
    def test_an_alias_of_itself_is_refused(self, tmp_path: Path, value: str) -> None:
        with pytest.raises(ConfigError, match=r"^--set classifiers.0.arguments=.*: the value is not valid YAML"):
            apply_overrides(drs(), [f"classifiers.0.arguments={value}"])
        (tmp_path / "config.yaml").write_text(f"dataset: {value}")
        with pytest.raises(ConfigError, match=r"config.yaml: not valid YAML: found unconstructable recursive node"):
            load_config(tmp_path / "config.yaml")

    def test_a_string_output_keeps_its_uri_below_an_override(self) -> None:
        config = parse_config(apply_overrides(drs(), ["output.endpoint_url=http://h:1"]))
        assert config.output.uri == "runs/x"

    def test_the_last_one_wins_and_the_source_is_left_alone(self) -> None:
        data = drs()
        assert apply_overrides(data, ["budget.estimation=1", "budget.estimation=2"])["budget"] == {"estimation": 2}
        assert data == drs()

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("budget.estimation", "must be key.path=value, for example --set budget.estimation=1000"),
            ("=5", "must be key.path=value"),
            ("a..b=5", "must be key.path=value"),
            ("budget.estimation=[1", "the value is not valid YAML; quote it"),
            ("classifiers.2.sigma=1", "'2' must be an index below 2"),
            ("classifiers.left.sigma=1", "'left' must be an index below 2"),
            ("classifiers.-1.sigma=1", "'-1' must be an index below 2"),
            ("dataset.name.first=1", "'first' lies below a plain value ('mnist5k'); check the path"),
        ],
    )
    def test_refused(self, override: str, message: str) -> None:
        with pytest.raises(ConfigError) as error:
            apply_overrides(drs(), [override])
        assert str(error.value).startswith(f"--set {override}: ")
        assert message in str(error.value)

    def test_a_key_that_does_not_exist_is_found_by_validation(self) -> None:
        assert errors_of(apply_overrides(drs(), ["budgte.estimation=5"])) == [
            "config: budgte: unknown key; did you mean budget?"
        ]


class TestClasses:
    def classes_of(self, classes: object) -> tuple[str, ...] | None:
        return parse_config(drs(dataset={"name": "folder", "root": "images", "classes": classes})).dataset.classes

    def test_names_that_yaml_reads_as_numbers(self) -> None:
        assert self.classes_of([0, 1, 2, 10]) == ("0", "1", "2", "10")

    def test_a_file_has_a_name_per_line(self, tmp_path: Path) -> None:
        (tmp_path / "names.txt").write_bytes("\ufeffdog\r\n cat \n\nnight heron\n".encode())
        assert self.classes_of(str(tmp_path / "names.txt")) == ("dog", "cat", "night heron")

    def test_a_file_that_is_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "names.txt").write_bytes(b"\xff\n")
        with pytest.raises(ConfigError, match=r"dataset.classes: the file .*names.txt cannot be read \(not UTF-8\)"):
            self.classes_of(str(tmp_path / "names.txt"))

    def test_a_file_without_names(self, tmp_path: Path) -> None:
        (tmp_path / "names.txt").write_text("\n \n")
        with pytest.raises(ConfigError, match=r"dataset.classes: the file .*names.txt is empty; it must have a class "):
            self.classes_of(str(tmp_path / "names.txt"))

    def test_a_list_and_a_file_fit_the_schema(self) -> None:
        for classes in (["cat", "dog"], "names.txt", None):
            data = drs(dataset={"name": "folder", "root": "images", "classes": classes}, output={"uri": "runs/x"})
            jsonschema.Draft202012Validator(json.loads(json_schema())).validate(data)


class TestSchema:
    def validate(self, data: object) -> None:
        schema = json.loads(json_schema())
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.Draft202012Validator(schema).validate(data)

    def test_accepts_an_example(self) -> None:
        self.validate(drs(output={"uri": "runs/x"}))
        self.validate(parse_config(drs()).model_dump(mode="json"))

    def test_accepts_a_string_as_output(self) -> None:
        self.validate(drs())

    @pytest.mark.parametrize("sections", [{"noise": {"sed": 1}}, {"budget": {"estimation": 0}}, {"classifiers": []}])
    def test_refuses_what_the_config_refuses(self, sections: dict[str, Any]) -> None:
        with pytest.raises(jsonschema.ValidationError):
            self.validate(drs(output={"uri": "runs/x"}, **sections))

    def test_describes_keys(self) -> None:
        text = json_schema()
        for words in ("Failure probability of one image's whole certificate", "pixel units", "packed: "):
            assert words in text


class TestIdentity:
    """docs/architecture.md: run_id is a hash of all that changes a vote, and of nothing else."""

    IDS, DIGESTS = (0, 5, 10), ("a" * 64, "b" * 64)

    def id_of(
        self,
        config: RunConfig,
        digest: str = "d" * 64,
        ids: tuple[int, ...] = IDS,
        digests: tuple[str, ...] = DIGESTS,
    ) -> str:
        dataset = DatasetRecord(digest=digest, num_classes=10, image_shape=(1, 28, 28))
        return run_id(identity(config, dataset, ids, digests))

    @pytest.mark.parametrize(
        "override",
        [
            "dataset.split=train",
            "partition.layout=masked",
            "classifiers.0.architecture=resnet20",
            "classifiers.0.arguments.width=16",
            "classifiers.1.sigma=0.26",
            "noise.seed=1",
            "noise.block=500",
            "engine.batch=64",
            "engine.device=cuda",
        ],
    )
    def test_changes_with_what_changes_a_vote(self, override: str) -> None:
        assert self.id_of(parse_config(apply_overrides(drs(), [override]))) != self.id_of(parse_config(drs()))

    @pytest.mark.parametrize(
        "override",
        [
            "budget.selection=7",
            "budget.estimation=7",
            "certificate.alpha=0.5",
            "certificate.vote=mean",
            "certificate.radii=[0, 1]",
            "certificate.weights=[1, 2]",
            "output=s3://bucket/elsewhere",
            "engine.address=inline",
            "engine.workers=3",
            "engine.cpus_per_worker=2",
            "engine.images_per_unit=1",
            "engine.samples_per_unit=5000",
            "engine.stall_seconds=5",
            "engine.device=cpu",
            "classifiers.0.checkpoint=moved.safetensors",
            "classifiers.0.entry=ema",  # the digest of the weights says what it was
            "dataset.root=/elsewhere",
            "dataset.download=true",
            "training.epochs=99",
        ],
    )
    def test_stays_with_all_else(self, override: str) -> None:
        assert self.id_of(parse_config(apply_overrides(drs(), [override]))) == self.id_of(parse_config(drs()))

    def test_changes_with_pixels_images_and_weights(self) -> None:
        config = parse_config(drs())
        ids = {
            self.id_of(config),
            self.id_of(config, digest="e" * 64),
            self.id_of(config, ids=(0, 5)),
            self.id_of(config, ids=(5, 0, 10)),
            self.id_of(config, digests=("b" * 64, "a" * 64)),
            self.id_of(config, digests=("a" * 64, "c" * 64)),
        }
        assert len(ids) == 6

    def test_how_the_images_were_chosen_does_not_matter(self) -> None:
        chosen = parse_config(drs(dataset={"images": {"ids": list(self.IDS)}}))
        assert self.id_of(chosen) == self.id_of(parse_config(drs()))

    def test_is_the_same_after_a_round_trip(self) -> None:
        config = parse_config(drs(classifiers=classifiers(sigma=0.1 + 0.2, arguments={"a": [1, 0.1, None, "é"]})))
        again = RunConfig.model_validate_json(config.model_dump_json())
        assert again == config
        assert self.id_of(again) == self.id_of(config)


def test_updated_validates_again() -> None:
    config = parse_config(drs())
    assert config.updated("certificate", alpha=0.05).certificate.alpha == 0.05
    assert config.certificate.alpha == 0.001
    with pytest.raises(ConfigError, match=r"certificate\.alpha: must be in \(0, 1\), got 2"):
        config.updated("certificate", alpha=2)
    with pytest.raises(ConfigError, match="unknown key"):
        config.updated("certificate", beta=2)


@pytest.mark.parametrize("sections", [{"budget": {"estimation": True}}, {"training": {"learning_rate": True}}], ids=str)
def test_true_is_not_a_number(sections: dict[str, Any]) -> None:
    assert "got True" in errors_of(drs(**sections))[0]


def test_where_one_radius_is_asked_for_the_table_ends_there() -> None:
    radii = (0.0, 0.25, 0.5, 1.0)
    assert CertificateConfig(radii=radii).grid == radii
    assert CertificateConfig(radii=radii, radius=0.5).grid == (0.0, 0.25, 0.5)
    assert CertificateConfig(radii=radii, radius=0.3).grid == (0.0, 0.25, 0.3)
