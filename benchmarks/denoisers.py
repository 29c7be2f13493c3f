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

from benchmarks.training import digits
from drs_ray import certify, train
from drs_ray.config import RunConfig, parse_config

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
KINDS = {"RS": ("none", "packed"), "DRS, packed": ("checkerboard", "packed"), "DRS, masked": ("checkerboard", "masked")}


def measure() -> Iterator[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for method in ("gaussian", "mse", "stability"):
            for kind, (partition, layout) in KINDS.items():
                name = folder / f"{partition}-{layout}"
                start = {"start_from": str(name / "mse" / "unet-{sub_image}")} if method == "stability" else {}
                training = {"method": method, **TRAINING[method], **start}
                data = digits(
                    name / ("gaussian" if method == "gaussian" else "clean"), partition, training, IMAGES, ESTIMATION
                )
                data["partition"]["layout"], data["output"] = layout, str(name / method / "run")
                if method != "gaussian":
                    if layout == "masked":  # one classifier of whole images, which RS has trained
                        for classifier in data["classifiers"]:
                            classifier["checkpoint"] = str(folder / "none-packed" / "clean" / "0.safetensors")
                    else:
                        train(parse_config({**data, "training": {"method": "clean", "mixed_precision": False}}))
                    for index, classifier in enumerate(data["classifiers"]):
                        unet = str(name / method / f"unet-{index}")
                        classifier["denoiser"] = {"architecture": "diffusers", "checkpoint": unet, "arguments": UNET}
                yield _row(f"{kind}, {method}", parse_config(data))


def _row(name: str, config: RunConfig) -> tuple[str, str, str]:
    started = time.process_time()
    train(config)
    trained = time.process_time()
    found = certify(config)
    return (
        name,
        f"ACR {found.average_certified_radius:.3f}, accuracy {found.accuracy:.3f}, {trained - started:.0f} s to train, "
        f"{time.process_time() - trained:.0f} s to certify",
        "report",
    )
