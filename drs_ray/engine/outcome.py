"""What a worker answers: a unit's part is stored, or how fast its votes were drawn. No Ray, no torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """A stored unit.

    count_seconds, put_seconds: wall time of drawing the votes, and of storing them with all retries. part: the stored
    bytes where the next stage depends on them, else empty. put_retries: how often storing began again, after pauses.
    """

    count_seconds: float
    put_seconds: float
    part: bytes = b""
    put_retries: int = 0


@dataclass(frozen=True)
class Measured:
    """How fast a unit's votes were drawn, where nothing is stored: `samples` in `seconds`.

    classes: how many classes got votes, the mean over ranges of samples.
    """

    seconds: float
    samples: int
    classes: float = 1.0

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds
