"""What of a working directory a job gets, and what is refused before it is sent."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from drs_ray.engine.ray import working_directory
from drs_ray.engine.ray.working_directory import check_size, checked_config, packed_files, path_within
from drs_ray.errors import ConfigError
from tests.support.runs import run_data, write_config

ROOT = Path(__file__).parents[4]


def _write(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("content")


def test_it_is_what_ray_packs(tmp_path: Path) -> None:
    work = tmp_path / "work"
    _write(work, "config.yaml", "a/kept.py", "a/left.bin", "b/.rayignore", "b/left.txt", ".git/HEAD", "a/__pycache__/x")
    _write(work, "runs/part.parquet", "kept.bin")
    (work / ".gitignore").write_text("/runs/\n")
    (work / "b" / ".rayignore").write_text("*.txt\n")
    (work / ".rayignore").write_text("a/*.bin\n")
    create_package(str(work), tmp_path / "package.zip", True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(tmp_path / "package.zip") as archive:
        rays = {entry.filename: entry.file_size for entry in archive.infolist() if not entry.is_dir()}
    assert packed_files(work) == rays
    assert {"config.yaml", "a/kept.py", "kept.bin"} <= set(rays)
    assert not {name for name in rays if "left" in name or name.startswith(("runs", ".git/"))}


def test_of_the_repository_a_job_gets_what_it_runs() -> None:
    files = packed_files(ROOT)
    assert {"drs_ray/cli/commands.py", "jobs/certify.py", "jobs/configs/demo.yaml"} <= set(files)
    assert {name.partition("/")[0] for name in files} >= {"drs_ray", "jobs"}
    assert not {name for name in files if re.match(r"(tests|docs|benchmarks|cluster|runs|\.ci|\.venv)/|.*\.md$", name)}
    check_size(files, ROOT)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--working-dir .*/none: must be a directory; "):
        packed_files(tmp_path / "none")


def test_too_much_is_refused_naming_what_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "data/a": 60 * 2**20,
        "data/b": 50 * 2**20,
        "big.bin": 7 * 2**20,
        "drs_ray/cli/app.py": 1,
        "x": 2,
        "y": 3,
    }
    with pytest.raises(ConfigError) as caught:
        check_size(files, Path("work"))
    assert str(caught.value).startswith(
        "--working-dir work: must pack to less than 100 MiB, is 117 MiB; largest: data/ 110 MiB, big.bin 7 MiB; "
        "name them in .rayignore"
    )
    monkeypatch.setattr(working_directory, "LIMIT_BYTES", 6)
    check_size({"x": 5}, Path("work"))
    with pytest.raises(ConfigError):
        check_size({"x": 6}, Path("work"))


def test_ray_has_this_limit() -> None:
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    assert working_directory.LIMIT_BYTES <= GCS_STORAGE_MAX_SIZE


def test_the_config_must_be_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    _write(work, "configs/run.yaml")
    assert path_within(work / "configs" / "run.yaml", work) == "configs/run.yaml"
    monkeypatch.chdir(work)
    assert path_within(Path("configs/../configs/run.yaml"), Path()) == "configs/run.yaml"
    with pytest.raises(ConfigError, match=r"^config .*other\.yaml: must be in the working directory"):
        path_within(tmp_path / "other.yaml", work)


def _data(**changes: Any) -> dict[str, Any]:
    return run_data("s3://bucket/run") | changes


def _check(directory: Path, data: dict[str, Any]) -> None:
    config = write_config(directory / "config.yaml", data)
    checked_config(config, [], "config.yaml", packed_files(directory), directory)


def test_relative_names_must_be_packed(tmp_path: Path) -> None:
    _write(tmp_path, "config.yaml", "left.safetensors", "data/cifar/batch", ".rayignore")
    data = _data(dataset={"name": "cifar10", "root": "data/cifar"})
    for checkpoint in ("left.safetensors", "./left.safetensors", "s3://bucket/left.safetensors", "/on/every/node.pt"):
        data["classifiers"][0]["checkpoint"] = checkpoint
        _check(tmp_path, data)
    data["classifiers"][1]["denoiser"] = {"architecture": "dncnn", "checkpoint": "denoiser.pt"}
    with pytest.raises(ConfigError, match=r"^classifiers\.1\.denoiser\.checkpoint: denoiser\.pt is not there in"):
        _check(tmp_path, data)
    del data["classifiers"][1]["denoiser"]
    data["classifiers"][0]["members"] = ["left.safetensors", "second.safetensors"]
    with pytest.raises(ConfigError, match=r"^classifiers\.0\.members\.1: second\.safetensors is not there in"):
        _check(tmp_path, data)
    del data["classifiers"][0]["members"]
    data["classifiers"][1]["checkpoint"] = "right.safetensors"
    with pytest.raises(ConfigError, match=r"^classifiers\.1\.checkpoint: right\.safetensors is not there in"):
        _check(tmp_path, data)
    _write(tmp_path, "right.safetensors")
    (tmp_path / ".rayignore").write_text("right.*\n")
    with pytest.raises(ConfigError, match=r"^classifiers\.1\.checkpoint: .* is left out by \.gitignore or \.rayignore"):
        _check(tmp_path, data)
    (tmp_path / ".rayignore").write_text("/data/\n")
    with pytest.raises(ConfigError, match=r"^dataset\.root: data/cifar is left out"):
        _check(tmp_path, data)
    data["dataset"]["root"] = "/data/cifar10"
    _check(tmp_path, data)
    (tmp_path / ".rayignore").write_text("*.yaml\n")
    with pytest.raises(ConfigError, match=r"^config: config\.yaml is left out"):
        _check(tmp_path, data)


@pytest.mark.parametrize("place", ["models/ddpm", "models/ddpm/", "./models/ddpm"])
def test_all_that_is_read_of_a_denoisers_directory_must_be_packed(tmp_path: Path, place: str) -> None:
    read = ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"]
    _write(tmp_path, "config.yaml", "models/ddpm/unet/diffusion_pytorch_model.bin")
    _write(tmp_path, *(f"models/ddpm/{file}" for file in read))
    data = _data()
    data["classifiers"][1]["denoiser"] = {"architecture": "diffusers", "checkpoint": place}
    _check(tmp_path, data)
    (tmp_path / ".gitignore").write_text("*.bin\n")  # not read
    _check(tmp_path, data)
    for left in ("*.safetensors", "/models/ddpm/unet/config.json", "scheduler*.json"):
        (tmp_path / ".gitignore").write_text(f"{left}\n")
        with pytest.raises(
            ConfigError, match=r"^classifiers\.1\.denoiser\.checkpoint: .*models/ddpm/.* is left out by"
        ):
            _check(tmp_path, data)
    for elsewhere in (str(tmp_path / "models/ddpm"), "s3://bucket/ddpm"):
        data["classifiers"][1]["denoiser"]["checkpoint"] = elsewhere
        _check(tmp_path, data)


@pytest.mark.parametrize("architecture", ["transformers", "timm:resnet18"])
def test_all_that_is_read_of_a_classifiers_directory_must_be_packed(tmp_path: Path, architecture: str) -> None:
    read = ["config.json", "preprocessor_config.json", "model.safetensors"]
    _write(tmp_path, "config.yaml", "models/vit/pytorch_model.bin", *(f"models/vit/{file}" for file in read))
    data = _data()
    data["classifiers"][1] |= {"architecture": architecture, "checkpoint": "models/vit"}
    (tmp_path / ".gitignore").write_text("*.bin\n")  # not read beside the other
    _check(tmp_path, data)
    for left in read:
        (tmp_path / ".gitignore").write_text(f"{left}\n")
        with pytest.raises(ConfigError, match=rf"^classifiers\.1\.checkpoint: models/vit/{left} is left out by"):
            _check(tmp_path, data)


def test_a_file_of_class_names_must_be_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    _write(work, "config.yaml", "images/test/cat/1.png", ".rayignore")
    _write(elsewhere, "names.txt")
    monkeypatch.chdir(elsewhere)  # where the submitting shell is does not matter
    data = _data(dataset={"name": "folder", "root": "images", "classes": "names.txt"})
    with pytest.raises(ConfigError, match=rf"^dataset\.classes: names\.txt is not there in the working .* {work}, "):
        _check(work, data)
    (work / "names.txt").write_text("cat\ndog\n")
    _check(work, data)
    (work / ".rayignore").write_text("*.txt\n")
    with pytest.raises(ConfigError, match=r"^dataset\.classes: names\.txt is left out by \.gitignore or \.rayignore"):
        _check(work, data)
    for name in ("/on/every/node.txt", "$ON_THE_CLUSTER/names.txt", ["cat", "dog"]):
        _check(work, data | {"dataset": data["dataset"] | {"classes": name}})


def test_variables_are_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ON_THE_CLUSTER", raising=False)
    data = _data(dataset={"name": "cifar10", "root": "$ON_THE_CLUSTER/cifar"}, output="$ON_THE_CLUSTER/run")
    config = write_config(tmp_path / "config.yaml", data)
    checked = checked_config(config, [], "config.yaml", packed_files(tmp_path), tmp_path)
    assert (checked.dataset.root, checked.output.uri) == ("$ON_THE_CLUSTER/cifar", "$ON_THE_CLUSTER/run")


def test_results_must_not_go_into_the_package(tmp_path: Path) -> None:
    _write(tmp_path, "config.yaml")
    with pytest.raises(ConfigError, match=r"^output: runs/x would be thrown away"):
        _check(tmp_path, _data(output="runs/x"))
    _check(tmp_path, _data(output="/shared/runs/x"))
