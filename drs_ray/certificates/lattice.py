"""How much the drawing of lattice noise on a computer adds to the failure probability of a certificate."""

from __future__ import annotations

import math
from collections.abc import Sequence

_STEPS = 255
_BITS = 62


def drawing_error(sigmas: Sequence[float], values: int, samples: int) -> float:
    """Probability that some sample of an image differs from one of the exact law: n d max_k TV_k, docs/theory.md 7.

    Every P(noise <= i) is off by at most 2^-63 for |i| below the reach H, and P(|noise| > H) is at most 2^-62, so that
    the total variation of one value is at most (H + 1) 2^-62. H is the first i with
    1 - Phi((i + 1/2) / (255 sigma)) <= 2^-63, and 1 - Phi(9.01) < 2^-63.

    Args:
        sigmas: K noise standard deviations, pixel units.
        values: number d of values of the image, in all sub-images and channels.
        samples: estimation samples n of each sub-image, at the last planned stage.
    """
    reach = math.ceil(9.01 * _STEPS * max(sigmas)) + 1
    return samples * values * (reach + 1) * 2.0**-_BITS
