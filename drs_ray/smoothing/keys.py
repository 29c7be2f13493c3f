"""What a block of noise is keyed by. No torch here, so that planning and reducing need none."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Phase = Literal["selection", "estimation", "search", "scaling", "confirmation"]
"""What samples are for: the first two are a run's votes, the others an attack's; no two phases share noise."""


@dataclass(frozen=True)
class NoiseKey:
    """What a stream of noise belongs to; sample numbers count from 0 within it.

    dataset: digest of the data set, so that what was tuned on image i of one split never meets the noise of image i of
    another.
    """

    seed: int
    image_id: int
    sub_image: int
    phase: Phase
    dataset: str = ""

    def block_digest(self, block_number: int) -> bytes:
        """128 bits that key one block."""
        parts = (self.seed, self.dataset, self.image_id, self.sub_image, self.phase, block_number)
        text = "|".join(["drs-ray noise 1", *map(str, parts)])
        return hashlib.blake2b(text.encode(), digest_size=16).digest()
