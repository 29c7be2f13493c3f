"""Attacking real runs: the command line, what is refused, what is repeated, and a certificate that is too large."""

from __future__ import annotations

import gc
import re
import shutil
import weakref
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import drs_ray
from drs_ray.checks.attack import run as attack_run
from drs_ray.checks.attack.report import AttackReport
from drs_ray.checks.attack.run import attack
from drs_ray.config import DatasetConfig, parse_config
from drs_ray.counts.run_record import read_record
from drs_ray.counts.schema import ATTACKS, CERTIFICATES_KEY, metadata
from drs_ray.data.datasets import open_dataset
from drs_ray.engine import unit_runner
from drs_ray.errors import ClassifierError, ConfigError, CountsError, SoundnessError, StoreError
from drs_ray.results.reduce import read_result
from drs_ray.storage import LocalStore, open_store
from drs_ray.training.run import train_run
from tests.support.runs import drs_ray as command
from tests.support.runs import drs_ray_here, run_config, run_data

QUICK: dict[str, Any] = {"steps": 6, "samples": 8, "confirmation": 300, "seed": 1}
OPTIONS = [word for name, value in QUICK.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of nearest prototypes; tests that change it work on a copy."""
    place = tmp_path_factory.mktemp("finished") / "run"
    drs_ray.certify(run_config(place, images=6))
    return place


@pytest.fixture(scope="module")
def honest(finished: Path) -> AttackReport:
    """The attack of its six images, with which others are compared."""
    return drs_ray.attack(str(finished), 6, **QUICK)


def edited(run: Path, place: Path, **columns: list[Any]) -> str:
    """A copy of the run whose certificates say something else."""
    shutil.copytree(run, place)
    table = pq.read_table(run / CERTIFICATES_KEY)
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        kind = table.schema.field(name)
        table = table.set_column(at, kind, [np.array(values, kind.type.to_pandas_dtype())])
    pq.write_table(table, place / CERTIFICATES_KEY)
    return str(place)


def test_a_classifier_that_writes_over_its_input_is_voted_on_and_attacked_as_any(
    finished: Path, honest: AttackReport, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    drs_ray.certify(run_config(place, images=6, factory="in_place"))
    assert drs_ray.read_certificates(place)["radius"] == drs_ray.read_certificates(finished)["radius"]
    assert np.array_equal(drs_ray.attack(place, 6, **QUICK).norm, honest.norm, equal_nan=True)
    drs_ray.verify(place, 3).check()


class _Memory:
    """Stands for the tensors of a search."""


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_group_of_images_that_does_not_fit_into_memory_is_divided(
    finished: Path, honest: AttackReport, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    search, fits = attack_run.search_directions, 2
    tried: list[int] = []
    held: list[weakref.ref[_Memory]] = []

    def limited(target: Any, images: torch.Tensor, *rest: Any) -> torch.Tensor:
        assert not [memory for memory in held if memory() is not None], "of a search that has failed"
        tried.append(len(images))
        if len(images) <= fits:
            return search(target, images, *rest)
        memory = _Memory()
        held.append(weakref.ref(memory))
        if wrapped:
            raise ClassifierError("the classifier failed") from torch.OutOfMemoryError("tried to allocate 20 GiB")
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(attack_run, "search_directions", limited)
    gc.disable()
    try:
        divided = drs_ray.attack(str(finished), 6, **QUICK)
    finally:
        gc.enable()
    assert divided.table["image_id"] == honest.table["image_id"]
    assert np.allclose(divided.norm, honest.norm, rtol=1e-3, equal_nan=True)
    assert tried[0] == len(honest.table)
    assert tried[1] == (tried[0] + 1) // 2
    assert sum(images for images in tried if images <= fits) == len(honest.table)
    fits = 0
    held.clear()
    with pytest.raises(ClassifierError, match=r"memory is too small for 8 noisy copies of one image .*lower --samples"):
        drs_ray.attack(str(finished), 6, **QUICK)


def test_one_process_reads_the_data_set_once_for_all_sub_images(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []

    def load(named: DatasetConfig, **options: Any) -> Any:
        loads.append(named.name)
        return open_dataset(named, **options)

    monkeypatch.setattr(unit_runner, "open_dataset", load)
    drs_ray.attack(str(finished), 1, **QUICK)
    assert len(loads) == 1
    drs_ray.verify(str(finished), 99).check()
    assert len(loads) == 2
    drs_ray.certify(run_config(tmp_path / "run", images=6))
    assert len(loads) == 3


def test_the_command_line_gives_the_same_table(finished: Path, honest: AttackReport, tmp_path: Path) -> None:
    before = sorted(path.name for path in finished.rglob("*"))
    file = tmp_path / "attack.parquet"
    arguments = ["attack", str(finished), "--images", "6", *OPTIONS, "--output", str(file)]
    done = command(arguments)
    assert done.returncode == 0, done.stderr
    run = read_result(open_store(str(finished)))
    assert done.stdout.splitlines()[-1] == "no certificate is contradicted"
    assert f"run                     {run.record.run_id}" in done.stdout
    assert sorted(path.name for path in finished.rglob("*")) == before  # the run is as it was
    table = pq.read_table(file)
    assert table.equals(honest.table)  # the seed decides everything, in any process
    assert table.schema.equals(ATTACKS)
    assert metadata(table.schema)["run_id"] == run.record.run_id
    assert metadata(table.schema)["seed"] == "1"
    certified = run.certificates.filter(run.radius > 0)
    for name in ("image_id", "label", "prediction", "radius"):
        assert table[name].equals(certified[name])
    assert f"attacked                {len(table)} images, {6 - len(table)} more abstain (--seed 1, cpu)" in done.stdout
    assert np.isfinite(table["norm"].to_numpy()).any()
    for row in table.to_pylist():
        assert row["level"] == 1e-3 / len(table)
        assert len(row["prediction_votes"]) == len(row["rival_votes"]) == (2 if row["rival"] >= 0 else 0)
    assert done.stderr.splitlines()[-1] == f"attack: {len(table)} of {len(table)} images"


def test_a_radius_that_is_too_large_fails_loudly(finished: Path, honest: AttackReport, tmp_path: Path) -> None:
    honest.check()
    chosen = int(np.nanargmin(honest.norm))
    image_id, norm = honest.table["image_id"][chosen].as_py(), honest.norm[chosen]
    rows = pq.read_table(finished / CERTIFICATES_KEY).to_pylist()
    radii = [1.1 * norm if row["image_id"] == image_id else row["radius"] for row in rows]
    uri = edited(finished, tmp_path / "run", radius=radii)
    with patch.object(AttackReport, "write", side_effect=StoreError("the disk is full")):  # does not hide it
        done = drs_ray_here(["attack", uri, "--images", "6", *OPTIONS, "--quiet", "--output", str(tmp_path / "a")])
    assert done.returncode == 1
    assert "UNSOUND" in done.stdout
    assert "no certificate is contradicted" not in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {uri}: NOT SOUND: 1 of {honest.attacked} attacked images has a confirmed")
    assert f"worst image {image_id}: class {honest.table['prediction'][chosen].as_py()} is certified up to" in line
    assert f"repeat with `drs-ray attack {uri} --images 6 --steps 6 --samples 8 --confirmation 300" in line
    record, chance = read_record(LocalStore(finished)), 6 * 0.001 + 0.001
    drawing = 6 * (record.failure_probability(0.001) - 0.001 + record.drawing_error(300))
    assert 0 < drawing < 1e-4  # lattice noise
    assert honest.chance == pytest.approx(chance + drawing, rel=1e-12)
    (stated,) = re.findall(r"with probability at most ([0-9.]+)\. Do", line)
    assert chance + drawing <= float(stated) <= 1.01 * honest.chance


def test_a_class_that_does_not_win_contradicts_its_certificate(finished: Path, tmp_path: Path) -> None:
    rows = pq.read_table(finished / CERTIFICATES_KEY).to_pylist()
    wrong = [(row["selected_class"] + 5) % 10 for row in rows]
    uri = edited(finished, tmp_path / "run", prediction=wrong, radius=[1.0] * 6)
    report = drs_ray.attack(uri, 6, **QUICK)
    assert report.smallest_slack is not None
    assert report.smallest_slack < 0
    assert (report.norm < 1.0).all()  # a few hundred samples do not confirm the slightest lead
    with pytest.raises(SoundnessError, match="6 of 6 attacked images"):
        report.check()


def test_another_seed_is_another_attack(finished: Path, honest: AttackReport) -> None:
    other = drs_ray.attack(str(finished), 6, **{**QUICK, "seed": 2})
    assert other.table["image_id"].equals(honest.table["image_id"])
    assert not other.table["norm"].equals(honest.table["norm"])
    told: list[tuple[int, int]] = []
    free = {**QUICK, "steps": 1, "seed": None, "on_progress": lambda *where: told.append(where)}
    assert len({drs_ray.attack(str(finished), 1, **free).seed for _ in range(2)}) == 2
    assert told == [(1, 1), (1, 1)]


def test_what_cannot_be_written_is_told_before_the_attack(finished: Path, tmp_path: Path) -> None:
    with patch("drs_ray.checks.attack.run.attack", side_effect=AssertionError("begun")):
        done = drs_ray_here(["attack", str(finished), "--output", str(tmp_path)])
    assert done.returncode == 2
    assert done.stderr.startswith("error: output must name a Parquet file to write, like ")
    assert len(done.stderr.splitlines()) == 1


def test_where_nothing_is_found_no_certificate_was_tested(finished: Path) -> None:
    with patch("drs_ray.checks.attack.run.smallest_norm", return_value=None):
        done = drs_ray_here(["attack", str(finished), "--images", "2", *OPTIONS, "--quiet"])
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == (
        "no certificate is contradicted, nor tested: no perturbation was found and confirmed"
    )


def test_images_that_abstain_are_skipped_and_counted(finished: Path, tmp_path: Path) -> None:
    rows = pq.read_table(finished / CERTIFICATES_KEY).to_pylist()
    some = edited(
        finished,
        tmp_path / "some",
        prediction=[-1, -1, *(row["prediction"] for row in rows[2:])],
        radius=[0.0, 0.0, *(row["radius"] for row in rows[2:])],
    )
    certified = sum(row["prediction"] >= 0 for row in rows[2:])
    report = drs_ray.attack(some, 6, **QUICK)
    assert (report.attacked, report.skipped) == (certified, 6 - certified)
    none = edited(finished, tmp_path / "none", prediction=[-1] * 6, radius=[0.0] * 6)
    with pytest.raises(CountsError, match="abstains on all 6 images drawn: there is nothing to attack"):
        drs_ray.attack(none, 6, **QUICK)


def test_the_vote_is_that_of_the_certificates(finished: Path, honest: AttackReport, tmp_path: Path) -> None:
    """A run that was reduced by another vote is attacked as that smoothed classifier."""
    shutil.copytree(finished, tmp_path / "run")
    drs_ray.reduce(str(tmp_path / "run"), vote="mean")
    report = drs_ray.attack(str(tmp_path / "run"), 6, **QUICK)
    report.check()
    assert not report.table["norm"].equals(honest.table["norm"])
    drs_ray.reduce(str(tmp_path / "run"), vote="probit", weights=[1.0, 0.1])
    weighted = drs_ray.attack(str(tmp_path / "run"), 6, **QUICK)
    weighted.check()
    assert not weighted.table["norm"].equals(honest.table["norm"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"images": 0}, "images must be >= 1, got 0"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"samples": 1}, "samples must be >= 2, got 1"),
        ({"confirmation": 0}, "confirmation must be >= 1, got 0"),
        ({"confirmation": 50}, "confirmation is too small, got 50: a tenth of it, .* whatever the votes; raise it"),
        ({"level": 0.0}, r"level must be in \(0, 1\)"),
        ({"level": 1.0}, r"level must be in \(0, 1\)"),
        ({"device": "tpu"}, "device must be cpu or cuda, got tpu"),
        ({"overrides": ["noise.seed=3"]}, "the run is taken as it is"),
    ],
)
def test_arguments_that_cannot_be(finished: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        attack(open_store(str(finished)), **arguments)


def test_a_run_that_is_not_finished_is_refused_in_one_line(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / CERTIFICATES_KEY).unlink()
    with pytest.raises(CountsError, match="not there; finish the run with `drs-ray certify`, then `drs-ray reduce`"):
        drs_ray.attack(str(tmp_path / "run"))
    with pytest.raises(CountsError, match="no drs-ray run here"):
        drs_ray.attack(str(tmp_path / "nowhere"))


def test_a_classifier_without_gradient_is_refused_in_one_line(tmp_path: Path) -> None:
    drs_ray.certify(run_config(tmp_path / "run", images=3, factory="without_gradient", how="detach"))
    done = drs_ray_here(["attack", str(tmp_path / "run"), *OPTIONS, "--quiet"])
    assert done.returncode == 1
    assert done.stderr.startswith("error: sub-image 0: the classifier has no gradient with respect to its input")
    assert len(done.stderr.splitlines()) == 1


def test_a_trained_network_is_broken_above_its_radii(tmp_path: Path) -> None:
    data = run_data(tmp_path / "run", images=4)
    data["classifiers"] = [
        {"architecture": "digits-cnn", "checkpoint": str(tmp_path / f"{k}.safetensors"), "sigma": 0.5} for k in (0, 1)
    ]
    data["training"] = {"epochs": 2}
    data["noise"]["law"] = "gaussian"  # nothing is clipped then, so there is always a way out
    config = parse_config(data)
    train_run(config)
    drs_ray.certify(config)
    report = drs_ray.attack(str(tmp_path / "run"), 4, steps=15, samples=16, confirmation=1000, seed=0)
    report.check()
    assert report.attacked >= 2
    assert report.broken.all()
    assert report.median_ratio is not None
    assert 1 < report.median_ratio < 2
    moved = [f"classifiers.0.checkpoint={tmp_path}/1.safetensors"]
    with pytest.raises(ClassifierError, match="trained for sub-image 1, the run needs 0"):
        drs_ray.attack(str(tmp_path / "run"), 4, overrides=moved)
