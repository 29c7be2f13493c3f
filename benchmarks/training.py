"""Training methods and ensembles: ACR of RS and DRS on mnist5k, with the demo's network, noise, budget and test images.

`python -m benchmarks.training` tunes the methods' own hyper-parameters on images held out of the training split. What
it found is in `METHODS`; the test images of `python -m benchmarks training` had no part in it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from drs_ray import SmoothedClassifier, certify, make_partition, train
from drs_ray.config import RunConfig, parse_config
from drs_ray.data.arrays import ArrayDataset, load_mnist5k
from drs_ray.results.reduce import RunResult
from drs_ray.training.job import TrainingJob
from drs_ray.training.loop import EpochDone, Place, Report
from drs_ray.training.state import TrainingState, weights_of

TOTAL_SIGMA = 1.0
IMAGES = 200
ESTIMATION = 3000
MEMBERS = 2
PARTITIONS = {"RS": "none", "DRS": "checkerboard"}


def _macer(copies: int, weight: float) -> dict[str, Any]:
    """At the cost of 80 epochs of `gaussian`."""
    return {"method": "macer", "epochs": 80 // copies, "macer": {"copies": copies, "radius_weight": weight}}


def _smoothmix(step_size: float, weight: float) -> dict[str, Any]:
    """At the cost of 80 epochs of `gaussian`: four passes per step."""
    own = {"copies": 1, "steps": 2, "step_size": step_size, "mix_weight": weight, "warm_up": 5}
    return {"method": "smoothmix", "epochs": 20, "smoothmix": own}


METHODS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "gaussian, 80 epochs": {"epochs": 80},  # what two noisy copies cost
    "consistency, kl_weight 10": {"method": "consistency"},  # the paper's
    "consistency, kl_weight 5": {"method": "consistency", "consistency": {"kl_weight": 5.0}},
    "smoothadv, 2 steps, epsilon 1": {
        "method": "smoothadv",
        "smoothadv": {"copies": 1, "steps": 2, "epsilon": 1.0},
    },
    "macer, 2 copies, radius_weight 1": _macer(2, 1.0),
    "smoothmix, 2 steps, step_size 2": _smoothmix(2.0, 5.0),
}

CANDIDATES: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "gaussian, 80 epochs": {"epochs": 80},
    **{
        f"consistency, kl_weight {weight:g}": {"method": "consistency", "consistency": {"kl_weight": weight}}
        for weight in (1.0, 5.0, 10.0)
    },
    **{
        f"smoothadv, 2 steps, epsilon {epsilon:g}": {
            "method": "smoothadv",
            "smoothadv": {"copies": 1, "steps": 2, "epsilon": epsilon},
        }
        for epsilon in (0.25, 1.0)
    },
    **{
        f"macer, {copies} copies, radius_weight {weight:g}": _macer(copies, weight)
        for copies, weight in ((2, 6.0), (2, 1.0), (4, 1.0))
    },
    **{
        f"smoothmix, 2 steps, step_size {step_size:g}, mix_weight {weight:g}": _smoothmix(step_size, weight)
        for step_size, weight in ((2.0, 5.0), (1.0, 1.0))
    },
}


def measure() -> Iterator[tuple[str, str, str]]:
    for kind, partition in PARTITIONS.items():
        for name, training in METHODS.items():
            seconds, found = measured(partition, training)
            yield f"{kind}, {name}", f"{_found(found)}, {seconds:.0f} s to train", "report"
        yield from ensemble(kind, partition)
    for epochs in (80, 160):  # at the cost of 40 and 80 epochs of two networks
        seconds, found = measured("checkerboard", {"epochs": epochs}, one_network=True)
        yield f"DRS, one network, {epochs} epochs", f"{_found(found)}, {seconds:.0f} s to train", "report"


def measured(partition: str, training: dict[str, Any], one_network: bool = False) -> tuple[float, RunResult]:
    """CPU seconds of the training, and what the test images' certificates say. one_network: for all sub-images."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder), partition, training)
        if one_network:
            data = config.model_dump(mode="json")
            for classifier in data["classifiers"]:
                classifier["checkpoint"] = data["classifiers"][0]["checkpoint"]
            config = parse_config(data)
        started = time.process_time()
        train(config)
        seconds = time.process_time() - started
        return seconds, certify(config)


def ensemble(kind: str, partition: str) -> Iterator[tuple[str, str, str]]:
    """The networks of two seeds of `gaussian` as one classifier: at the samples, and at the passes, of one."""
    with tempfile.TemporaryDirectory() as folder:
        members = [_config(Path(folder) / str(seed), partition, {"seed": seed}) for seed in range(MEMBERS)]
        for config in members:
            train(config)
        for estimation in (ESTIMATION, ESTIMATION // MEMBERS):
            data = members[0].model_dump(mode="json")
            data["budget"]["estimation"], data["output"] = estimation, f"{folder}/{estimation}"
            for sub_image, classifier in enumerate(data["classifiers"]):
                classifier["members"] = [config.classifiers[sub_image].checkpoint for config in members[1:]]
            found = certify(parse_config(data))
            yield f"{kind}, gaussian, {MEMBERS} members, n = {estimation:,}", _found(found), "report"


def _found(result: RunResult) -> str:
    return f"ACR {result.average_certified_radius:.3f}, accuracy {result.accuracy:.3f}"


def tune() -> Iterator[tuple[str, str]]:
    """ACR by RS of every candidate on 200 held-out training images, 1,000 samples each; every 8th image is held out."""
    whole = load_mnist5k("train")
    held_out = np.arange(len(whole)) % 8 == 0
    fit, validation = _part(whole, ~held_out), _part(whole, held_out)
    chosen = np.random.default_rng(0).permutation(len(validation))[:IMAGES].tolist()
    images, labels = torch.from_numpy(validation.images(chosen)), validation.labels(chosen)
    for candidate, training in CANDIDATES.items():
        config = _config(Path("nowhere"), "none", training)
        classifier = _trained(TrainingJob(config, (0,), fit.digest), fit)
        smoothed = SmoothedClassifier(
            make_partition("none", 28, 28, "packed"), [classifier], config.sigmas, num_classes=10
        )
        found = smoothed.certify(images, n=1000, alpha=0.001)
        radii = np.where(np.asarray(found.prediction) == labels, np.asarray(found.radius), 0.0)
        yield candidate, f"{radii.mean():.3f}"


def _config(folder: Path, partition: str, training: dict[str, Any]) -> RunConfig:
    return parse_config(digits(folder, partition, training, IMAGES, ESTIMATION))


def digits(folder: Path, partition: str, training: dict[str, Any], images: int, estimation: int) -> dict[str, Any]:
    """The config of a run on mnist5k with the demo's network and total sigma 1, all of its files in `folder`."""
    count = 2 if partition == "checkerboard" else 1
    return {
        "dataset": {"name": "mnist5k", "images": {"stop": images}},
        "partition": {"name": partition},
        "classifiers": [
            {
                "architecture": "digits-cnn",
                "checkpoint": str(folder / f"{index}.safetensors"),
                "sigma": TOTAL_SIGMA / count**0.5,
            }
            for index in range(count)
        ],
        "budget": {"estimation": estimation},
        "engine": {"address": "inline", "device": "cpu"},
        "training": {"mixed_precision": False, **training},  # the same on every CPU
        "output": str(folder / "run"),
    }


def _part(dataset: ArrayDataset, chosen: NDArray[np.bool_]) -> ArrayDataset:
    return ArrayDataset(
        dataset.name, dataset.split, dataset.num_classes, dataset.pixels[chosen], dataset.targets[chosen]
    )


def _trained(job: TrainingJob, fit: ArrayDataset) -> torch.nn.Module:
    module = job.build(fit)
    states: list[TrainingState] = []

    def keep(report: Report) -> None:
        if isinstance(report, EpochDone) and report.state is not None:
            states[:] = [report.state]

    job.train(fit, Place(), TrainingState(0, weights_of(module)), keep)
    module.load_state_dict(states[0].weights)
    return module.eval()


if __name__ == "__main__":
    for row in tune():
        print(*row, sep=" | ", flush=True)
