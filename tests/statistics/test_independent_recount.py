"""A whole run against a second implementation that shares nothing with it: own noise, own pixels, own counting.

The engine's other tests compare it with itself. This one would notice noise that two images, sub-images or phases
share, a sigma that is another sub-image's, a classifier fed with the wrong pixels, or votes of the wrong phase.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from scipy.stats import beta, norm

from drs_ray import certify
from drs_ray.config import parse_config
from drs_ray.counts.schema import COUNTS_PREFIX
from drs_ray.data.datasets import load_dataset
from drs_ray.storage import open_store
from tests.support.classifiers import Prototypes
from tests.support.runs import run_data
from tests.unit.counts.factories import decode_part

SIGMAS = (0.5, 0.25)
SEED, BLOCK, SELECTION, ESTIMATION, ALPHA = 11, 100, 50, 400, 0.001


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Real digits, two sub-images with unequal sigmas, the plainest rule."""
    data = run_data(tmp_path_factory.mktemp("recount") / "run", images=5)
    data["noise"]["seed"] = SEED
    data["engine"]["precision"] = "float32"  # the second implementation's
    data["certificate"] = {"alpha": ALPHA, "rivals": False, "confidence": "bonferroni", "pooled": False}
    return certify(parse_config(data))


def _noise(dataset: str, image_id: int, sub_image: int, phase: str, samples: int, pixels: int) -> np.ndarray:
    """round(255 sigma Z) by the inverse distribution function, of 16 bits where they decide it, else of 62."""
    scale, blocks = 255 * SIGMAS[sub_image], []
    for number in range(-(-samples // BLOCK)):
        text = f"drs-ray noise 1|{SEED}|{dataset}|{image_id}|{sub_image}|{phase}|{number}"
        key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), "<u8")
        words = np.random.Philox(key=key).random_raw(BLOCK * pixels // 4)
        high = (words[:, None] >> np.array([0, 16, 32, 48], np.uint64) & np.uint64(0xFFFF)).ravel().astype(float)
        noise, above = (np.rint(scale * norm.ppf((high + more) / 2**16)) for more in (0, 1))
        open_ones = np.flatnonzero(noise != above)
        low = np.random.Philox(key=key, counter=[0, 0, 0, 1]).random_raw(len(open_ones)) / 2**64
        noise[open_ones] = np.rint(scale * norm.ppf((high[open_ones] + low) / 2**16))
        blocks.append(noise.reshape(BLOCK, pixels))
    return np.concatenate(blocks)[:samples]


def _votes(image: np.ndarray, noise: np.ndarray, sub_image: int) -> list[int]:
    """Pixels (r, c) with r + c even are sub-image 0's, the others 1's, read row by row."""
    own = [image[0, r, c] for r in range(28) for c in range(28) if (r + c) % 2 == sub_image]
    weight = Prototypes((1, 28, 14), 10).weight.detach().numpy()
    noisy = (np.rint(255 * np.array(own)) + noise) / 255
    return np.bincount((noisy.astype(np.float32) @ weight.T).argmax(axis=1), minlength=10).tolist()


def _recount(run) -> dict[tuple[int, int, str], list[int]]:
    dataset = load_dataset("mnist5k")
    return {
        (image, k, phase): _votes(dataset.image(image), _noise(dataset.digest, image, k, phase, samples, 28 * 14), k)
        for image in run.record.image_ids
        for k in range(2)
        for phase, samples in (("selection", SELECTION), ("estimation", ESTIMATION))
    }


def _stored(run) -> dict[tuple[int, int, str], list[int]]:
    store, votes = open_store(run.uri), {}
    for item in store.list(COUNTS_PREFIX):
        for row in decode_part(store.get(item.key), item.key, run.record.run_id, 10).to_pylist():
            cell = votes.setdefault((row["image_id"], row["sub_image"], row["phase"]), [0] * 10)
            for label, count in row["votes"]:
                cell[label] += count
    return votes


def test_every_vote_is_that_of_the_second_implementation(run):
    stored, again = _stored(run), _recount(run)
    assert stored.keys() == again.keys()
    # A score on a decision boundary may fall either way between two ways to multiply: at most one vote in a cell.
    for cell in again:
        assert np.abs(np.subtract(stored[cell], again[cell])).sum() <= 2, cell
    assert sum(stored[cell] == again[cell] for cell in again) >= len(again) - 1
    spread = [cell for cell, votes in again.items() if sum(count > 0 for count in votes) > 3]
    assert len(spread) > 5, "votes must be uncertain for the comparison to mean anything"


def test_every_radius_is_that_of_the_second_implementation(run):
    votes = _stored(run)
    for found in run.certificates.to_pylist():
        image = found["image_id"]
        selection = np.add(votes[image, 0, "selection"], votes[image, 1, "selection"])
        chosen = int(selection.argmax())
        assert found["selected_class"] == chosen
        radius = 0.0
        for k in range(2):
            count = votes[image, k, "estimation"][chosen]
            lower = beta.ppf(ALPHA / 2, count, ESTIMATION - count + 1) if count else 0.0
            radius += SIGMAS[k] * norm.ppf(lower) / math.sqrt(2)
        assert found["radius"] == pytest.approx(max(radius, 0.0), abs=1e-6)
        assert found["radius"] <= max(radius, 0.0)
