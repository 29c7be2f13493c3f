"""Denoised smoothing beside training under noise: ACR of RS and DRS on mnist5k, with a small U-Net as denoiser.

The classifier behind a denoiser is trained on clean digits. On packed halves, denoiser and classifier see a half; on
masked halves, the denoiser returns the whole digit for a classifier of whole digits. `stability` continues `mse`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drs_ray import certify, train
from drs_ray.config import parse_config

TOTAL_SIGMA = 1.0
IMAGES = 100
ESTIMATION = 500
UNET = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
TRAINING: dict[str, dict[str, Any]] = {
    "gaussian": {"epochs": 40},
    "mse": {"epochs": 15},
    "stability": {"epochs": 5, "learning_rate": 0.001},
}
SAME_EVERYWHERE = {"mixed_precision": False}
KINDS = {"RS": ("none", "packed"), "DRS, packed": ("checkerboard", "packed"), "DRS, masked": ("checkerboard", "masked")}


def measure() -> Iterator[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        yield from measured_in(Path(folder))


def measured_in(folder: Path) -> Iterator[tuple[str, str, str]]:
    """The rows. What the folder has of an earlier call with it is not done again."""
    for method in ("gaussian", "mse", "stability"):
        for kind, (partition, layout) in KINDS.items():
            name = folder / f"{partition}-{layout}"
            data = _data(name / ("gaussian" if method == "gaussian" else "clean"), partition, layout)
            data["output"] = str(name / method / "run")
            if method != "gaussian":
                if layout == "masked":  # one classifier of whole images, which RS has trained
                    for classifier in data["classifiers"]:
                        classifier["checkpoint"] = str(folder / "none-packed" / "clean" / "0.safetensors")
                else:
                    train(parse_config({**data, "training": {"method": "clean", **SAME_EVERYWHERE}}))
                for index, classifier in enumerate(data["classifiers"]):
                    place = str(name / method / f"unet-{index}")
                    classifier["denoiser"] = {"architecture": "diffusers", "checkpoint": place, "arguments": UNET}
            start = {"start_from": str(name / "mse" / "unet-{sub_image}")} if method == "stability" else {}
            yield _row(f"{kind}, {method}", data, {"method": method, **TRAINING[method], **start})


def _row(name: str, data: dict[str, Any], training: dict[str, Any]) -> tuple[str, str, str]:
    started = time.process_time()
    train(parse_config({**data, "training": {**training, **SAME_EVERYWHERE}}))
    trained = time.process_time()
    found = certify(parse_config(data))
    return (
        name,
        f"ACR {found.average_certified_radius:.3f}, accuracy {found.accuracy:.3f}, {trained - started:.0f} s to train, "
        f"{time.process_time() - trained:.0f} s to certify",
        "report",
    )


def _data(folder: Path, partition: str, layout: str) -> dict[str, Any]:
    count = 2 if partition == "checkerboard" else 1
    return {
        "dataset": {"name": "mnist5k", "images": {"stop": IMAGES}},
        "partition": {"name": partition, "layout": layout},
        "classifiers": [
            {
                "architecture": "digits-cnn",
                "checkpoint": str(folder / f"{index}.safetensors"),
                "sigma": TOTAL_SIGMA / count**0.5,
            }
            for index in range(count)
        ],
        "budget": {"estimation": ESTIMATION},
        "engine": {"address": "inline", "device": "cpu"},
    }
