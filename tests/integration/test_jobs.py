"""What is submitted to a cluster: the files in jobs/, run as Ray's job manager runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from drs_ray.models.checkpoints import load_checkpoint
from tests.support.runs import run_data, write_config

ROOT = Path(__file__).parents[2]


def _job(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "jobs/train.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_training_job_prints_the_checkpoints_or_one_line(tmp_path):
    data = run_data(tmp_path / "run")
    files = [tmp_path / f"{index}.safetensors" for index in range(2)]
    for classifier, file in zip(data["classifiers"], files, strict=True):
        classifier["checkpoint"] = str(file)
    config = write_config(tmp_path / "config.yaml", data | {"training": {"epochs": 1}})
    done = _job(str(config))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(file) for file in files]
    assert load_checkpoint(files[1])[1].sub_images == (1,)
    bad = _job(str(write_config(tmp_path / "bad.yaml", data | {"training": {"epochs": 0}})))
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.strip() == f"error: {tmp_path / 'bad.yaml'}: training.epochs: must be >= 1, got 0"
    assert _job().returncode != 0
