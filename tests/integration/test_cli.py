"""The command line as its users meet it: what it prints, where it writes, how it refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args, get_type_hints
from unittest.mock import patch

import pytest
import torch
import yaml

from drs_ray import certify, cli, read_run
from drs_ray.models.architectures import build_architecture
from drs_ray.models.checkpoints import CheckpointMetadata, save_checkpoint
from tests.support.runs import drs_ray, drs_ray_here, run_config, run_data, write_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; tests that change it work on a copy."""
    place = tmp_path_factory.mktemp("finished") / "run"
    certify(run_config(place, images=6))
    return place


def _ok(*arguments: str, run=drs_ray_here) -> str:
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_certify_status_reduce_report(tmp_path):
    """Each in a process of its own, as a user runs them; the other tests here save that."""
    config = write_config(tmp_path / "config.yaml", run_data(tmp_path / "run", images=6))
    out = _ok("certify", str(config), "--quiet", run=drs_ray)
    assert "ACR" in out
    assert f"certificates: {tmp_path}/run/certificates.parquet" in out
    out = _ok("status", str(tmp_path / "run"), run=drs_ray)
    assert "4 of 4 (100 %)" in out
    assert "5,400 of 5,400" in out
    out = _ok("reduce", str(tmp_path / "run"), "--alpha", "0.05", "--radii", "0,0.1", run=drs_ray)
    assert read_run(str(tmp_path / "run")).alpha == 0.05
    assert read_run(str(tmp_path / "run")).curve["radius"].to_pylist() == [0.0, 0.1]
    out = _ok("report", str(tmp_path / "run"), "--output", str(tmp_path / "report"), run=drs_ray)
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == [
        "certified_accuracy.png",
        "certified_accuracy.svg",
        "report.html",
    ]


def test_variables_are_expanded_in_every_path_of_the_command_line(tmp_path, monkeypatch, capsys):
    no_path = {"address", "endpoint_url", "radii", "vote", "device", "format_", "unit"}
    no_path |= {"dataset", "split", "sigma", "radius_rule"}
    texts = set()
    for command in cli.app.registered_commands:
        for parameter, hint in get_type_hints(command.callback, include_extras=True).items():
            if re.search(r"\bstr\b|Path", str(get_args(hint)[:1])) and parameter not in no_path:
                texts.add((command.callback.__name__, parameter, hint.__metadata__[0].callback is not None))
    whole = {name for name, parameter, _ in texts if parameter == "config"}  # read with load_config, --set and all
    assert {item for item in texts if not item[2]} == {(name, "set_", False) for name in whole}
    paths = texts - {(name, "set_", False) for name in whole}
    assert len(paths) > 20
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.delenv("NOT_HERE", raising=False)
    cases = {
        ("status", "$PLACE/none"): f"{tmp_path}/none: no drs-ray run here",
        ("status", "~/nothing/at/all"): f"{Path.home()}/nothing/at/all: no drs-ray run here",
        ("status", "$NOT_HERE/run"): "RUN: the environment variable NOT_HERE is not set; set it, or write $$",
        ("report", "$PLACE/a", "${NOT_HERE}/b"): "RUN...: the environment variable NOT_HERE is not set",
        ("verify", "$PLACE", "--set", "dataset.root=$NOT_HERE"): "--set: the environment variable NOT_HERE is not set",
        ("export", "a", "--format", "tsv", "--output", "$NOT_HERE"): "--output: the environment variable NOT_HERE is",
        ("certify", "${PLACE}/none.yaml"): f"config {tmp_path}/none.yaml: cannot be read",
    }
    for arguments, message in cases.items():
        monkeypatch.setattr(sys, "argv", ["drs-ray", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        line = capsys.readouterr().err
        assert line.startswith(f"error: {message}"), line
        assert line.count("\n") == 1
        assert ended.value.code in (1, 2)


def test_an_unfinished_run_is_reported_as_such_and_goes_on(finished, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(finished, place)
    (place / "certificates.parquet").unlink()
    sorted(place.glob("counts/k1/**/*.parquet"))[-1].unlink()
    refused = drs_ray_here(["report", str(place)])
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "drs-ray report --partial" in refused.stderr
    out = _ok("report", str(place), "--partial", "--output", str(tmp_path / "report"))
    assert "PARTIAL: 3 OF 6 IMAGES" in out
    assert "Partial: 3 of 6 images." in (tmp_path / "report" / "report.html").read_text()
    assert not (place / "certificates.parquet").exists()


def test_progress_is_plain_lines_where_there_is_no_terminal(tmp_path):
    config = write_config(tmp_path / "config.yaml", run_data(tmp_path / "run", images=3))
    with patch("drs_ray.engine.description.datetime") as clock:  # both starts in the same second
        clock.now.return_value = datetime(2026, 11, 27, tzinfo=UTC)
        done = drs_ray_here(["certify", str(config)])
        again = drs_ray_here(["certify", str(config), "--quiet"])
    assert "certify: 2/2 units done" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert again.stderr.startswith("certify: resuming run ")


def test_plan_measures_and_writes_nothing(tmp_path):
    config = write_config(tmp_path / "config.yaml", run_data(tmp_path / "run", images=6))
    out = _ok("plan", str(config), "--set", "budget.estimation=1000", "--price", "2.5")
    assert "12,600" in out
    assert "at 2.5 a CPU hour" in out
    assert "samples/s per worker" in out
    assert not (tmp_path / "run").exists()


def test_schema_is_a_json_schema():
    schema = json.loads(_ok("schema"))
    assert set(schema["properties"]) >= {"dataset", "partition", "classifiers", "output"}


def test_reduce_and_report_load_neither_torch_nor_ray(finished, tmp_path):
    code = (
        "import sys, drs_ray\n"
        f"run = drs_ray.reduce({str(finished)!r}, alpha=0.01)\n"
        f"drs_ray.write_report([run], {str(tmp_path)!r})\n"
        "loaded = {'torch', 'ray'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_training_then_certifying(tmp_path):
    data = run_data(tmp_path / "run", images=3)
    data["classifiers"] = [
        {"architecture": "digits-cnn", "checkpoint": str(tmp_path / f"{k}.safetensors"), "sigma": 0.5} for k in (0, 1)
    ]
    data["training"] = {"epochs": 1}
    config = write_config(tmp_path / "config.yaml", data)
    assert _ok("train", str(config), "--quiet").split() == [str(tmp_path / f"{k}.safetensors") for k in (0, 1)]
    assert "ACR" in _ok("certify", str(config), "--quiet")
    quieter = drs_ray_here(
        ["certify", str(config), "--set", "classifiers.1.sigma=0.25", "--set", f"output={tmp_path}/2"]
    )
    assert quieter.returncode == 0
    assert "warning: " in quieter.stderr  # another training sigma is allowed, but said
    swapped = [data["classifiers"][1], data["classifiers"][0]]
    config = write_config(tmp_path / "swapped.yaml", data | {"classifiers": swapped, "output": str(tmp_path / "3")})
    _refused(drs_ray_here(["certify", str(config)]), 1, "sub-image")
    assert not (tmp_path / "3" / "run.json").exists()


def _refused(done: subprocess.CompletedProcess[str], code: int, *what: str) -> None:
    """One clear line, the exit code, no traceback."""
    assert done.returncode == code, done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    for text in what:
        assert text in message


@pytest.mark.parametrize(
    ("override", "code", "what"),
    [
        ("dataset.name=mnist6k", 2, ["dataset.name", "'mnist5k'", "got 'mnist6k'"]),
        ("dataset.images.stop=0", 2, ["dataset.images.stop", ">= 1"]),
        ("dataset.images={start: 5000}", 2, ["dataset.images.start", "999", "5000"]),
        ("dataset.images={ids: [3, 3]}", 2, ["dataset.images", "duplicates"]),
        ("certificate.alpha=1.5", 2, ["certificate.alpha: must be in (0, 1), got 1.5"]),
        ("budget.estimation=0", 2, ["budget.estimation: must be >= 1, got 0"]),
        ("budget.selection=-1", 2, ["budget.selection"]),
        ("output=/dev/null/run", 1, ["/dev/null/run"]),
        ("output=ftp://host/run", 2, ["ftp"]),
        ("partition.name=none", 2, ["classifiers must have one entry per sub-image"]),
        ("noise.sed=1", 2, ["noise.sed: unknown key; did you mean seed?"]),
        ("classifiers.0.architecture=resnet20", 1, ["checkpoint"]),
        ("classifiers.0.architecture=resnet21", 1, ["resnet21", "resnet20"]),
        ("classifiers.0.architecture=nowhere:build", 1, ["nowhere"]),
        ("classifiers.0.checkpoint=missing.safetensors", 1, ["missing.safetensors"]),
        ("engine.address=somewhere", 2, ["engine.address"]),
        ("engine=fast", 2, ["engine"]),
        ("engine.device=cuda", 2, ["engine.device: cuda needs a GPU"]),
        ("engine.gpus_per_worker=3", 2, ["engine.gpus_per_worker: must be <= 0"]),
        ("certificate.radii=0.5", 2, ["certificate.radii: must be a list, for example [0, 1], got 0.5"]),
        ("classifiers.0.architecture=tests.support.classifiers:unseeded", 1, ["returns other weights each time"]),
        ("classifiers.0.architecture=tests.support.classifiers:raising", 1, ["sub-image 0", "on purpose"]),
    ],
)
def test_bad_input_gets_one_line(tmp_path, override, code, what):
    config = write_config(tmp_path / "config.yaml", run_data(tmp_path / "run", images=3))
    _refused(drs_ray_here(["certify", str(config), "--set", override]), code, *what)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_missing_and_broken_configs(tmp_path):
    _refused(drs_ray_here(["certify", str(tmp_path / "none.yaml")]), 2, "none.yaml", "cannot be read")
    (tmp_path / "broken.yaml").write_text("a: [1")
    _refused(drs_ray_here(["certify", str(tmp_path / "broken.yaml")]), 2, "not valid YAML")
    (tmp_path / "twice.yaml").write_text("noise: {seed: 1}\nnoise: {seed: 2}")
    _refused(drs_ray_here(["certify", str(tmp_path / "twice.yaml")]), 2, "the key 'noise' is there twice")
    (tmp_path / "list.yaml").write_text("- 1")
    _refused(drs_ray_here(["certify", str(tmp_path / "list.yaml")]), 2, "must be a mapping")


def test_usage_errors_end_with_2():
    assert drs_ray_here(["certify"]).returncode == 2
    assert drs_ray_here(["no-such-command"]).returncode == 2


def test_places_without_a_run(tmp_path):
    for command in ("status", "reduce", "report", "verify", "compact", "repair"):
        _refused(drs_ray_here([command, str(tmp_path)]), 1, "no drs-ray run here")


def test_a_checkpoint_for_another_image_size_is_refused(tmp_path):
    module = build_architecture("digits-cnn", (1, 28, 28), 10, {})
    metadata = CheckpointMetadata(
        architecture="digits-cnn",
        partition="checkerboard",
        layout="packed",
        sub_images=(0,),
        sigma=0.5,
        num_classes=10,
        image_shape=(1, 28, 28),
        dataset="mnist5k",
        training="",
    )
    save_checkpoint(tmp_path / "full.safetensors", module, metadata)
    data = run_data(tmp_path / "run", images=3)
    data["classifiers"][0] = {
        "architecture": "digits-cnn",
        "checkpoint": str(tmp_path / "full.safetensors"),
        "sigma": 0.5,
    }
    config = write_config(tmp_path / "config.yaml", data)
    _refused(drs_ray_here(["certify", str(config)]), 1, "full.safetensors", "28")


def test_a_pickle_with_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    data = run_data(tmp_path / "run", images=3)
    data["classifiers"][0] |= {"checkpoint": str(tmp_path / "bomb.pt")}
    config = write_config(tmp_path / "config.yaml", data)
    _refused(drs_ray_here(["certify", str(config)]), 1, "bomb.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("damage", ["truncated", "foreign", "misplaced"])
def test_damaged_parts_are_named_and_nothing_is_reduced(tmp_path, finished, damage):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = (run / "certificates.parquet").read_bytes()
    first, second, *_ = sorted((run / "counts").rglob("*.parquet"))
    match damage:
        case "truncated":
            first.write_bytes(first.read_bytes()[:-10])
        case "foreign":
            shutil.copy(run / "curve.parquet", first)
        case "misplaced":
            shutil.copy(second, first)
    _refused(drs_ray_here(["reduce", str(run)]), 1, f"counts part {first.relative_to(run)}")
    assert (run / "certificates.parquet").read_bytes() == before
    first.unlink()
    _refused(drs_ray_here(["reduce", str(run)]), 1, "the run is not finished: 3 of 6 images")


def test_run_json_keeps_no_credentials(finished, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-store-me")
    text = (finished / "run.json").read_text()
    assert "do-not-store-me" not in text
    assert yaml.safe_load(text)["config"]["output"]["uri"] == str(finished)


def test_help_names_every_command_with_an_example():
    commands = ("demo", "plan", "certify", "status", "reduce", "report", "train", "schema")
    overview = _ok("--help")
    for name in commands:
        assert name in overview
        assert f"drs-ray {name}" in " ".join(_ok(name, "--help").split())
