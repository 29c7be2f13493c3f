"""Which versions a run's record has, and which differences a resumed run names."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

from drs_ray import certify
from drs_ray.counts.run_record import RUN_KEY
from drs_ray.engine.description import SOFTWARE, software_of
from tests.support.runs import run_config
from tests.unit.engine.factories import Recorder


def test_versions_are_those_of_the_libraries_that_the_layers_are_of() -> None:
    always = {"python": platform.python_version()} | {name: metadata.version(name) for name in SOFTWARE}
    assert software_of([]) == always
    assert software_of(["torch.nn.modules.conv", "drs_ray.models.denoisers", "tests.support.classifiers"]) == always
    found = software_of(["timm.models.resnet", "timm.layers", "efficientnet_lite_pytorch.model", "__main__"])
    assert found == always | {
        "efficientnet-lite-pytorch": metadata.version("efficientnet-lite-pytorch"),
        "timm": metadata.version("timm"),
    }


def test_a_resumed_run_names_other_versions_but_not_those_that_its_record_lacks(tmp_path: Path) -> None:
    certify(run_config(tmp_path, images=1))
    record = json.loads((tmp_path / RUN_KEY).read_text())
    assert record["software"] == software_of([])
    record["software"] |= {"scipy": "0.1"}
    del record["software"]["pyarrow"]
    (tmp_path / RUN_KEY).write_text(json.dumps(record))
    recorder = Recorder()
    certify(run_config(tmp_path, images=1), recorder)
    (warning,) = [event for event in recorder.events if "the run began with" in event]
    assert warning.startswith(f"warning: the run began with scipy 0.1, this is {metadata.version('scipy')}; ")
