"""Every public function, given something of the wrong type, says so in one line; paths may be texts or Paths."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import drs_ray
from drs_ray.data.datasets import load_dataset
from drs_ray.engine.observer import Observer
from drs_ray.errors import ConfigError, DataError
from tests.support.classifiers import Prototypes
from tests.support.runs import run_data

LOG = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t7\t7\t0.5\t1\t0:00:01\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a config, a finished run, and a log."""
    directory = tmp_path_factory.mktemp("api")
    (directory / "config.yaml").write_text(yaml.safe_dump(run_data(directory / "run", images=2)))
    (directory / "log.tsv").write_text(LOG)
    drs_ray.certify(directory / "config.yaml")
    return directory


class Smoothed:
    """A classifier for whole digits, whose methods are looked at too."""

    def __init__(self) -> None:
        self.partition = drs_ray.make_partition("none", 28, 28, "packed")
        self.module = Prototypes((1, 28, 28), 10)
        self.images = load_dataset("mnist5k").images(range(2))

    def arguments(self) -> dict[str, Any]:
        given: dict[str, Any] = {"partition": self.partition, "classifiers": [self.module], "sigmas": [0.5]}
        given |= {"num_classes": 10, "rule": None, "weights": None, "law": "lattice", "seed": 0, "dataset": ""}
        return given | {"block": 100, "batch": None, "device": "cpu", "precision": "float32", "compile": False}

    def made(self, **changes: Any) -> drs_ray.SmoothedClassifier:
        return drs_ray.SmoothedClassifier(**self.arguments() | changes)


def calls(place: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Every public function and method, with arguments of the right types."""
    ours, run = Smoothed(), drs_ray.read_run(place / "run")
    uri: dict[str, Any] = {"uri": place / "run", "endpoint_url": None}
    again: dict[str, Any] = {"seed": 1, "device": "cpu", "level": 0.001, "overrides": ()}
    attacked = uri | again | {"images": 1, "steps": 2, "samples": 2, "confirmation": 300, "on_progress": None}
    verified = uri | again | {"units": 1, "images": 1, "image": None, "observer": None}
    stated: dict[str, Any] = {"dataset": "mnist5k", "sigmas": [0.5], "estimation": 1000, "selection": 100}
    stated |= {"alpha": 0.001, "split": "test", "radius_rule": "unknown", "radius": None, "radii": [0.0, 0.5]}
    images: dict[str, Any] = {"x": ours.images, "n": 20, "alpha": 0.001, "image_ids": [0, 1]}
    rule = {"vote": "probit", "confidence": "bonferroni", "weights": None, "rivals": False, "pooled": False}
    cut = {"name": "interleave", "height": 4, "width": 4, "layout": "packed", "interleave": [2, 2]}
    return {
        "Rule": (drs_ray.Rule, rule | {"radius": None}),
        "RunConfig": (drs_ray.RunConfig, dict.fromkeys(drs_ray.RunConfig.model_fields)),
        "SmoothedClassifier": (drs_ray.SmoothedClassifier, ours.arguments()),
        "SmoothedClassifier.certify": (ours.made().certify, images | {"selection": 10}),
        "SmoothedClassifier.predict": (ours.made().predict, images),
        "attack": (drs_ray.attack, attacked),
        "audit": (drs_ray.audit, uri),
        "certify": (drs_ray.certify, {"config": place / "config.yaml", "observer": Observer()}),
        "export": (drs_ray.export, {"runs": [run], "kind": "markdown", "radii": [0.0, 0.5]}),
        "import_log": (
            drs_ray.import_log,
            {"file": place / "log.tsv", "uri": place / "imported", "endpoint_url": None, **stated},
        ),
        "load_config": (drs_ray.load_config, {"path": place / "config.yaml", "overrides": ["noise.seed=1"]}),
        "log_to_mlflow": (drs_ray.log_to_mlflow, {"run": run}),
        "make_partition": (drs_ray.make_partition, cut),
        "plot_certified_accuracy": (drs_ray.plot_certified_accuracy, {"runs": [run], "ax": None}),
        "plot_radius_histogram": (drs_ray.plot_radius_histogram, {"runs": [run], "ax": None}),
        "read_certificate": (drs_ray.read_certificate, uri | {"image_id": 0}),
        "read_certificates": (drs_ray.read_certificates, uri),
        "read_run": (drs_ray.read_run, uri),
        "reduce": (drs_ray.reduce, uri | {"alpha": 0.01}),
        "train": (drs_ray.train, {"config": place / "config.yaml"}),
        "verify": (drs_ray.verify, verified),
        "write_report": (
            drs_ray.write_report,
            {
                "runs": [run],
                "directory": place / "report",
                "compare_rules": False,
                "common": False,
                "endpoint_url": None,
            },
        ),
    }


NO_FUNCTIONS = {"DrsError", "__version__"}


def parameters(name: str) -> set[str]:
    """Names of a public function's arguments."""
    found: Any = drs_ray
    for part in name.split("."):
        found = getattr(found, part)
    named = inspect.signature(found).parameters.values()
    return {one.name for one in named if one.kind is not one.VAR_KEYWORD}


def test_every_public_name_and_argument_is_tried(place: Path) -> None:
    tried = calls(place)
    assert {name.partition(".")[0] for name in tried} | NO_FUNCTIONS == set(drs_ray.__all__)
    methods = {name for name, _ in inspect.getmembers(drs_ray.SmoothedClassifier, inspect.isfunction)}
    assert {name for name in methods if name[0] != "_"} == {"certify", "predict", "rule"}
    for name, (_, given) in tried.items():
        extra = {"alpha"} if name == "reduce" else {"self"} & parameters(name)
        assert given.keys() | {"self"} & parameters(name) == parameters(name) | extra, name


class Other:
    """Of no type that anything takes."""


def test_an_argument_of_another_type_is_named_in_one_line(place: Path) -> None:
    raw = []
    for name, (function, given) in calls(place).items():
        errors: Any = drs_ray.DrsError if name not in ("Rule", "RunConfig") else ValueError
        for argument in given:
            for wrong in (Other(), 1.5j):
                try:
                    function(**given | {argument: wrong})
                except errors as error:
                    lines = str(error).splitlines()
                    if len(lines) > 1 and name != "RunConfig":
                        raw.append((name, argument, lines))
                except Exception as error:
                    raw.append((name, argument, repr(error)))
                else:
                    raw.append((name, argument, "accepted"))
    assert raw == []


@pytest.mark.parametrize("kind", [str, Path, os.fspath])
def test_places_may_be_texts_and_paths(place: Path, kind: Callable[[Path], Any]) -> None:
    run = kind(place / "run")
    shown = drs_ray.read_run(run)
    assert drs_ray.read_certificates(run).num_rows == 2
    assert drs_ray.read_certificate(run, np.int64(1)).image_id == 1  # type: ignore[arg-type]
    assert drs_ray.reduce(run).uri == str(place / "run")
    assert "report.html" in drs_ray.write_report([shown], kind(place / "report"))
    drs_ray.import_log(kind(place / "log.tsv"), kind(place / "one"), dataset="mnist5k", sigmas=0.25, estimation=1000)
    drs_ray.attack(run, 1, steps=2, samples=2, confirmation=300).write(kind(place / "attack.parquet"))
    assert drs_ray.load_config(kind(place / "config.yaml")).budget.estimation == 400


def test_a_config_may_be_a_mapping(place: Path) -> None:
    data = yaml.safe_load((place / "config.yaml").read_text())
    loaded = drs_ray.load_config(place / "config.yaml", ["noise.seed=3"])
    assert drs_ray.load_config(data, ["noise.seed=3"]) == loaded
    assert drs_ray.certify(data).images == 2
    with pytest.raises(ConfigError, match=r"overrides must be a list of texts, got 'noise.seed=3'"):
        drs_ray.load_config(data, "noise.seed=3")
    with pytest.raises(ConfigError, match=r"runs must be a list of runs of drs_ray.read_run or drs_ray.certify"):
        drs_ray.export("run", "tsv")  # type: ignore[arg-type]


@pytest.fixture
def ours() -> Iterator[Smoothed]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Smoothed()
    torch.set_num_threads(threads)


def test_one_classifier_and_one_sigma_will_do_for_one_sub_image(ours: Smoothed) -> None:
    expected = ours.made(sigmas=[0.25]).certify(ours.images, 50)
    for module in (ours.module, torch.nn.ModuleList([ours.module]), torch.nn.Sequential(ours.module)):
        found = ours.made(classifiers=module, sigmas=np.float64(0.25)).certify(ours.images, 50)
        assert found.radius.tolist() == expected.radius.tolist()
    with pytest.raises(ConfigError, match="sigmas must have one entry per sub-image, 1, got 2"):
        ours.made(sigmas=[0.25, 0.5])


def test_ids_may_be_an_array_or_a_tensor(ours: Smoothed) -> None:
    smoothed, expected = ours.made(), [7, 2**63 - 1]
    for ids in (expected, np.array(expected), torch.tensor(expected)):
        assert smoothed.certify(ours.images, 20, image_ids=ids).image_ids.tolist() == expected
    for wrong in ([0, 2**70], torch.tensor([0.0, 1.0]), torch.tensor([True, False]), np.array([0.5, 1.0]), 3, "01"):
        with pytest.raises(ConfigError, match="image_ids must be "):
            smoothed.predict(ours.images, 20, image_ids=wrong)


def test_images_that_are_no_images(ours: Smoothed) -> None:
    smoothed, images = ours.made(law="gaussian"), torch.from_numpy(ours.images)
    for wrong in (images.to_sparse(), images.to("meta")):
        with pytest.raises(DataError, match="x must be a dense tensor with values, got torch"):
            smoothed.certify(wrong, 20)
    with pytest.raises(DataError, match=r"x must be in \[0, 1\], got 1\.0000001\d* in image 0"):
        smoothed.certify(torch.full((1, 28, 28), 1.0000001), 20)
    with pytest.raises(drs_ray.DrsError, match=r"classifiers\[0\] has tensors without values \(meta\)"):
        ours.made(classifiers=[Prototypes((1, 28, 28), 10).to("meta")])


def test_the_version_is_the_packages() -> None:
    assert drs_ray.__version__ == metadata.version("drs-ray")
