"""What bfloat16 does to votes and radii: the same images, noise and weights in both precisions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.models import trained_config
from drs_ray import certify
from drs_ray.counts.history import read_counts
from drs_ray.storage import open_store

IMAGES = 100
ESTIMATION = 1000
NETWORKS = {"digits-cnn": "the demo's CNN", "resnet20": "ResNet-20"}


def measure() -> Iterator[tuple[str, str, str]]:
    for architecture, name in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            radii, accuracies, votes = [], [], []
            for precision in ("float32", "bfloat16"):
                config = trained_config(
                    Path(folder),
                    architecture,
                    dataset={"name": "mnist5k", "images": {"stop": IMAGES}},
                    budget={"estimation": ESTIMATION},
                    engine={"address": "inline", "device": "cpu", "precision": precision, "compile": False},
                    output=str(Path(folder) / precision),
                )
                run = certify(config)
                radii.append(run.average_certified_radius)
                accuracies.append(run.accuracy)
                counts = read_counts(open_store(run.uri), run.record).at(ESTIMATION)
                votes.append(np.stack([table.toarray() for table in counts.estimation]))
        moved = np.abs(votes[0] - votes[1]).sum() / 2 / votes[0].sum()
        yield (
            f"{name} on mnist5k, DRS, {IMAGES} images, n = {ESTIMATION:,}: ACR in bfloat16 ({radii[1]:.4f}) against "
            f"float32 ({radii[0]:.4f}); accuracy {accuracies[1]:.3f} and {accuracies[0]:.3f}; votes that differ, at "
            f"least {100 * moved:.2f} %",
            f"{radii[1] / radii[0]:.4f}x",
            "within 1 %",
        )
