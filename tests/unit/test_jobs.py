"""jobs/: entry points that are the command line, and configs that are valid."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from drs_ray.config import load_config, load_dataset_config

JOBS = Path(__file__).parents[2] / "jobs"
CONFIGS = sorted((JOBS / "configs").glob("*.yaml"))


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOBS / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=JOBS.parent, timeout=120)


@pytest.mark.parametrize("name", ["certify", "train", "reduce", "report", "verify", "audit"])
def test_an_entry_point_is_its_command(name: str, tmp_path: Path) -> None:
    nothing = _run(name, str(tmp_path / "none"))
    assert nothing.returncode == (2 if name in ("certify", "train") else 1)
    assert nothing.stderr.startswith("error: ")
    assert nothing.stderr.count("\n") == 1


def test_certify_goes_to_the_cluster_unless_told_otherwise(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from drs_ray.cli import running\n"
        "running.load = lambda *given: sys.exit(str(given[2]))\n"
        "import runpy\n"
        f"sys.argv = ['certify.py', 'config.yaml', *{{}}]\n"
        f"runpy.run_path({str(JOBS / 'certify.py')!r}, run_name='__main__')\n"
    )
    for arguments, address in (([], "auto"), (["--address", "inline"], "inline")):
        done = subprocess.run([sys.executable, "-c", code.format(arguments)], capture_output=True, text=True)
        assert done.stderr.strip() == address


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_for_a_cluster(file: Path) -> None:
    config = load_config(file)
    assert config.engine.address == "auto"
    assert config.output.uri.startswith("s3://")
    if config.engine.device == "cuda":
        assert config.engine.workers is not None  # else nothing asks an autoscaler for the first GPU
        assert config.dataset.name == "parquet"  # on S3: no node has files of its own
        source = load_dataset_config(file, ["dataset.name=cifar10", "dataset.root=data"])  # what docs/clusters.md packs
        assert (source.name, source.split) == ("cifar10", config.dataset.split)


def test_the_noise_levels_are_those_of_the_files_names() -> None:
    assert len(CONFIGS) >= 6
    for file in CONFIGS:
        stem, _, sigma = file.stem.rpartition("-")
        if stem.startswith("cifar10"):
            assert {c["sigma"] for c in yaml.safe_load(file.read_text())["classifiers"]} == {float(sigma)}
    names = {file.stem for file in CONFIGS}
    assert names >= {"cifar10-rs-0.25", "cifar10-rs-0.50", "cifar10-drs-0.18", "cifar10-drs-0.36"}


def test_the_sweep_submits_a_valid_run_for_each_sigma(tmp_path: Path) -> None:
    stub = tmp_path / "drs-ray"
    stub.write_text('#!/bin/bash\nprintf "%s\\n" "$@" --end >> "$0.log"\n')
    stub.chmod(0o755)
    command = ["bash", str(JOBS / "configs" / "sweep.sh"), "--address", "http://head:8265"]
    subprocess.run(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, cwd=JOBS.parent, check=True)
    calls = Path(f"{stub}.log").read_text().strip().split("--end")[:-1]
    outputs, sigmas = set(), set()
    for call in calls:
        words = call.split()
        assert words[0] == "submit"
        assert words[2:5] == ["--no-wait", "--address", "http://head:8265"]
        config = load_config(JOBS.parent / words[1], [b for a, b in itertools.pairwise(words) if a == "--set"])
        outputs.add(config.output.uri)
        sigmas |= set(config.sigmas)
        assert all(f"-{s:.2f}-" in str(c.checkpoint) for c, s in zip(config.classifiers, config.sigmas, strict=True))
    assert len(calls) == len(outputs) == len(sigmas) == 4
