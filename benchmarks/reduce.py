"""Counts to certificates: a million images of 10 classes, and 50,000 of 1000 classes with sparse votes.

Each case runs in a process of its own, so that its peak memory is its own; synthetic counts are made before the clock
starts. `python -m benchmarks.reduce IMAGES SUB_IMAGES CLASSES SAMPLES RIVALS` runs one case.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array, vstack
from scipy.special import softmax

from drs_ray.certificates.radii import certified_radii
from drs_ray.certificates.rule import Rule
from drs_ray.counts.history import Counts
from drs_ray.results.selected_votes import selected_votes

SAMPLES = 100_000
SELECTION = 100
SEEN = 20  # classes that can get a vote of an image
CHUNK = 50_000
SIGMA = 0.36
ALPHA = 0.001
CASES = [
    (1_000_000, 2, 10, False, 60),
    (1_000_000, 2, 10, True, 65),
    (1_000_000, 4, 10, True, 300),
    (50_000, 2, 1000, True, 20),
]


def measure() -> Iterator[tuple[str, str, str]]:
    for images, sub_images, classes, rivals, aim in CASES:
        command = [sys.executable, "-m", __name__, *map(str, (images, sub_images, classes, SAMPLES, int(rivals)))]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        seconds, gib = map(float, found[:2])
        rule = "pairs staircase" if rivals else "p_A staircase"
        yield (
            f"reduce {images:,} images, K = {sub_images}, C = {classes}, n = {SAMPLES:,}, {rule}",
            f"{seconds:.0f} s, peak {gib:.2f} GiB",
            f"< {aim} s, < 4 GiB",
        )


def synthetic_counts(images: int, sub_images: int, classes: int, samples: int) -> Counts:
    """Votes such as real classifiers give: most images easy, their sub-images alike, few classes seen."""
    rng = np.random.default_rng(0)
    seen = min(SEEN, classes)
    parts: dict[tuple[str, int], list[csr_array]] = {}
    for start in range(0, images, CHUNK):
        size = min(CHUNK, images - start)
        columns = np.argsort(rng.random((size, classes), dtype=np.float32), axis=1)[:, :seen]
        logits = 3 * rng.standard_normal((size, seen))
        logits[:, 0] += 6
        for k in range(sub_images):
            chances = softmax(logits + rng.standard_normal((size, seen)), axis=1)
            for phase, trials in (("selection", SELECTION), ("estimation", samples)):
                votes = rng.multinomial(trials, chances)
                row, column = np.nonzero(votes)
                found = csr_array((votes[row, column], (row, columns[row, column])), shape=(size, classes))
                parts.setdefault((phase, k), []).append(found)
    selection, estimation = (
        tuple(csr_array(vstack(parts[phase, k], format="csr")) for k in range(sub_images))
        for phase in ("selection", "estimation")
    )
    return Counts(np.arange(images), np.zeros(images, np.int64), selection, estimation)


def _one_case(images: int, sub_images: int, classes: int, samples: int, rivals: int) -> None:
    rule = Rule("probit", "staircase", rivals=bool(rivals))
    counts = synthetic_counts(images, sub_images, classes, samples)
    votes_seen = sum(part.nnz for part in counts.estimation) / sub_images / images
    before = _peak_gib()
    started = time.perf_counter()
    votes = selected_votes(counts, rule)
    gathered = time.perf_counter()
    radii = certified_radii(
        votes.class_votes,
        votes.samples,
        (SIGMA,) * sub_images,
        rule,
        ALPHA,
        rivals=votes.rivals,
        unanimous=votes.unanimous,
    )
    ended = time.perf_counter()
    print(ended - started, _peak_gib())
    print(f"evidence {gathered - started:.1f} s, making the counts took {before:.2f} GiB", end=", ")
    print(f"{votes_seen:.1f} classes seen an image, mean radius {radii.radius.mean():.6f}")


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    _one_case(*map(int, sys.argv[1:]))
