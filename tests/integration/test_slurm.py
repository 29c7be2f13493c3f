"""cluster/slurm/certify.sbatch: tried with a real `ray symmetric-run` where a process namespace can be had."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from drs_ray import certify
from tests.support.runs import BATCH, counts_digest, resumed_line, run_config, run_data, stored_parts, write_config

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm" / "certify.sbatch"
TWO_MACHINES = Path(__file__).parents[1] / "support" / "two_machines.sh"
# `ray symmetric-run` starts beside no other Ray and ends all that it finds: it must see no processes but its own.
NAMESPACE = ["unshare", "--map-root-user", "--net", "--mount", "--pid", "--kill-child", "--mount-proc"]


def _has_namespaces() -> bool:
    if not all(map(shutil.which, ["unshare", "nsenter", "ip"])):
        return False
    trial = [*NAMESPACE, "ip", "link", "add", "first", "type", "veth", "peer", "name", "second"]
    return subprocess.run(trial, stderr=subprocess.DEVNULL).returncode == 0


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on a SLURM site of one node, whose `srun` is a small script."""
    (tmp_path / "srun").write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    path = os.pathsep.join([str(tmp_path), sysconfig.get_path("scripts"), os.environ["PATH"]])
    return os.environ | {
        "PATH": path,
        "HOME": str(tmp_path),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "1",
    }


def test_its_options_are_before_its_first_command() -> None:
    lines = SCRIPT.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [re.split("[= ]", line)[1] for line in lines[:first] if line.startswith("#SBATCH ")]
    assert {"--exclusive", "--signal", "--ntasks-per-node", "--gpus-per-node", "--time"} <= set(options)
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]


def test_without_a_config_it_says_how_it_is_used(site: dict[str, str]) -> None:
    done = subprocess.run(["bash", SCRIPT], env=site, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch certify.sbatch CONFIG")


def test_what_it_runs(site: dict[str, str], tmp_path: Path) -> None:
    """With a `ray` that only writes down what it was given: the token is for the user alone, and gone at the end."""
    ray = tmp_path / "ray"
    ray.write_text(
        '#!/bin/bash\nprintf "%s\\n" "$@" > "$HOME/arguments"\nstat -c %a "$RAY_AUTH_TOKEN_PATH" > "$HOME/given"\n'
        'echo "$RAY_AUTH_MODE $RAY_ADDRESS $(wc -c < "$RAY_AUTH_TOKEN_PATH") $(umask)" >> "$HOME/given"\nexit 3\n'
    )
    ray.chmod(0o755)
    command = ["bash", SCRIPT, "a config.yaml", "--set", "noise.seed=1"]
    done = subprocess.run(command, env=site, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr  # the run's own code
    arguments = (tmp_path / "arguments").read_text().splitlines()
    separator = arguments.index("--")
    options = dict(zip(arguments[1:separator:2], arguments[2:separator:2], strict=True))
    mode, rest = (tmp_path / "given").read_text().splitlines()
    port = 20000 + int(site["SLURM_JOB_ID"]) % 20000
    assert options["--address"].endswith(f":{port}")
    assert not options["--address"].startswith("127.")
    assert options["--num-gpus"] == "0"
    assert arguments[separator + 1] == "bash"
    assert arguments[-3:] == ["a config.yaml", "--set", "noise.seed=1"]
    assert mode == "600"
    assert rest.split()[:3] == ["token", options["--address"], "64"]
    assert rest.split()[3] != "0077"  # results are as open as the user's other files
    assert not list((tmp_path / ".ray").iterdir())


def _script_of(namespace: subprocess.Popen[str]) -> int:
    """Process id of what `unshare` has forked: the first process of the namespace."""
    return int(Path(f"/proc/{namespace.pid}/task/{namespace.pid}/children").read_text())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not _has_namespaces(), reason="needs process and network namespaces of its own")
def test_a_run_on_two_machines_that_meets_its_time_limit_and_is_submitted_again(
    site: dict[str, str], tmp_path: Path
) -> None:
    gate, run = tmp_path / "gate", tmp_path / "run"
    slow = {"images": 48, "factory": "slow", "trigger": BATCH, "seconds": 0.1, "gate": str(gate)}
    certify(run_config(tmp_path / "inline", **slow))
    config = write_config(tmp_path / "config.yaml", run_data(run, **slow))
    site |= {"SLURM_JOB_NUM_NODES": "2"}
    (tmp_path / "srun").write_text(
        "#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n"
        'nsenter --target "$(cat "$HOME/second")" --net --pid --mount -- "$@" &>> "$HOME/second.log" &\n'
        '"$@"\ncode=$?\nkill $!; wait\nexit $code\n'  # --kill-on-bad-exit: the first task's end is the others'
    )
    script = [*NAMESPACE, "bash", TWO_MACHINES, tmp_path, "bash", SCRIPT, config]
    gate.touch()
    with subprocess.Popen(script, env=site, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as begun:
        try:
            deadline = time.monotonic() + 240
            while not stored_parts(run) and begun.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            os.kill(_script_of(begun), signal.SIGTERM)  # as SLURM does: the batch script alone (B:)
            said = begun.communicate(timeout=240)[0]
        finally:
            begun.kill()
    assert begun.returncode == 143, said
    assert "interrupted by SIGTERM; finished units are stored in" in said
    stored = stored_parts(run)
    assert 1 <= stored < 32
    gate.unlink()
    (tmp_path / "up").unlink()
    done = subprocess.run(script, env=site, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"certificates: {run}/certificates.parquet" in done.stdout
    assert resumed_line(stored, 32 - stored) in done.stdout + done.stderr
    assert "Ray runtime started" in (tmp_path / "second.log").read_text()
    assert counts_digest(run) == counts_digest(tmp_path / "inline")
    assert not Path(f"/tmp/drs-ray-{site['SLURM_JOB_ID']}").exists()
