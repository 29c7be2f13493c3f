"""The keys of noise blocks. This module needs no torch, so that planning and reducing need none."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Phase = Literal["selection", "estimation", "search", "scaling", "confirmation"]
"""The purpose of samples: the first two give a run's votes, the others an attack's; no two phases share noise."""


@dataclass(frozen=True)
class NoiseKey:
    """The key of one stream of noise; its sample numbers count from 0.

    dataset: digest of the data set, so that image i of one split has other noise than image i of another split, on
    which something may have been tuned.
    """

    seed: int
    image_id: int
    sub_image: int
    phase: Phase
    dataset: str = ""

    def block_digest(self, block_number: int) -> bytes:
        """The 128-bit key of one block."""
        parts = (self.seed, self.dataset, self.image_id, self.sub_image, self.phase, block_number)
        text = "|".join(["drs-ray noise 1", *map(str, parts)])
        return hashlib.blake2b(text.encode(), digest_size=16).digest()
