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
KINDS = {"RS": ("none", "packed"), "DRS, packed": ("checkerboard", "packed"), "DRS, masked": ("checkerboard", "masked")}


def measure() -> Iterator[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        yield from measured_in(Path(folder))


def measured_in(folder: Path) -> Iterator[tuple[str, str, str]]:
    """The rows. What the folder has of an earlier call with it is not done again."""
    for kind, (partition, layout) in KINDS.items():
        name = folder / f"{partition}-{layout}"
        plain = _data(name / "gaussian", partition, layout)
        yield from _row(f"{kind}, trained under noise", plain, {})
        denoised = _data(name / "denoised", partition, layout)
        classifiers, unets = denoised["classifiers"], name / "unet"
        for index, classifier in enumerate(classifiers):
            classifier["denoiser"] = {
                "architecture": "diffusers",
                "checkpoint": f"{unets}-{index}",
                "arguments": UNET,
            }
        if layout == "masked":  # one classifier of whole images, which RS has trained
            for classifier in classifiers:
                classifier["checkpoint"] = str(folder / "none-packed" / "denoised" / "0.safetensors")
        else:
            train(parse_config({**denoised, "training": {"method": "clean", "mixed_precision": False}}))
        yield from _row(f"{kind}, denoised, mse", denoised, {"method": "mse", "epochs": 15})
        start = f"{unets}-{{sub_image}}"
        for index, classifier in enumerate(classifiers):
            classifier["denoiser"]["checkpoint"] = f"{unets}-stable-{index}"
        stability = {"method": "stability", "epochs": 5, "learning_rate": 0.001, "start_from": start}
        yield from _row(f"{kind}, denoised, stability", denoised, stability)


def _row(name: str, data: dict[str, Any], training: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    started = time.process_time()
    train(parse_config({**data, "training": {"mixed_precision": False, **training}}))  # the same on every CPU
    trained = time.process_time()
    found = certify(parse_config({**data, "output": f"{data['output']}-{training.get('method', '')}"}))
    yield (
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
        "output": str(folder / "run"),
    }
