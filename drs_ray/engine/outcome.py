"""What a worker says of a unit that it has done: its part is stored, and how long that took. No Ray, no torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """A stored unit.

    count_seconds, put_seconds: wall time of drawing the votes, and of storing them with all retries. part: the stored
    bytes, where the next stage depends on them. put_retries: how often storing was begun again, after pauses.
    """

    count_seconds: float
    put_seconds: float
    part: bytes | None = None
    put_retries: int = 0


@dataclass(frozen=True)
class Measured(Outcome):
    """A unit that was drawn for its speed alone, and not stored: `samples` in `count_seconds`.

    classes: how many classes got votes, the mean over ranges of samples.
    """

    samples: int = 0
    classes: float = 1.0

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / self.count_seconds
