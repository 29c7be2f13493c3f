"""Versions agree among image, manifests and pyproject, and no file opens a port to the world."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
FILES = [path for path in sorted(CLUSTER.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
TEXTS = [*FILES, ROOT / "docs" / "clusters.md"]


def _ray() -> str:
    return re.findall(r"^ARG RAY_VERSION=(\S+)$", DOCKERFILE, re.MULTILINE)[0]


def test_the_image_has_the_python_and_the_ray_that_the_project_asks_for() -> None:
    python = re.findall(r"^FROM python:([\d.]+)-slim-\w+$", DOCKERFILE, re.MULTILINE)
    assert len(python) == 1
    assert python[0] in SpecifierSet(PROJECT["requires-python"])
    wanted = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "ray")
    assert _ray() in wanted.specifier
    assert '"ray[default]==${RAY_VERSION}"' in DOCKERFILE


def test_everything_that_names_the_image_or_ray_names_the_same() -> None:
    tag = f"{PROJECT['version']}-ray{_ray()}"
    named = [found for path in TEXTS for found in re.findall(r"\bdrs-ray:(\d[\w.-]*)", path.read_text())]
    assert len(named) > 6
    assert set(named) == {tag}
    versions = [v for path in FILES for v in re.findall(r'rayVersion: "(\S+)"', path.read_text())]
    assert versions == [_ray()] * 3


def test_the_image_runs_as_a_user_and_refuses_to_run_without_a_token() -> None:
    steps = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if re.match(r"[A-Z]+ ", line)]
    users = [words[1] for words in steps if words[0] == "USER"]
    assert users == ["ray"]
    assert "--uid 1000" in DOCKERFILE
    assert "RAY_AUTH_MODE=token" in DOCKERFILE.split("USER ray")[1]
    for words in steps:
        if words[0] == "COPY":
            for source in words[1].split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in (CLUSTER / "Dockerfile.dockerignore").read_text().split()


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_no_file_opens_a_port_to_the_world(file: Path) -> None:
    text = file.read_text()
    assert "0.0.0.0" not in text
    assert "LoadBalancer" not in text
    assert "NodePort" not in text


def test_wherever_ray_is_started_authentication_is_on() -> None:
    starts = [path for path in FILES if re.search(r"ray (start|symmetric-run) ?[-\\]", path.read_text())]
    assert {path.name for path in starts} >= {"aws.yaml", "certify.sbatch"}
    for path in starts:
        if path.suffix != ".py":  # the local cluster is started for real by the tests
            assert "RAY_AUTH_MODE=token" in path.read_text(), path
            assert "RAY_AUTH_TOKEN_PATH=" in path.read_text(), path
