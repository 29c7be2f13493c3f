"""Results that workers return: of a stored unit, and of a measurement. This module imports neither Ray nor torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """The result of a stored unit.

    count_seconds, put_seconds: wall time of drawing the votes, and of storing them with all retries. part: the stored
    bytes if the next stage depends on them, else empty. put_retries: how often the put was repeated after a pause.
    """

    count_seconds: float
    put_seconds: float
    part: bytes = b""
    put_retries: int = 0


@dataclass(frozen=True)
class Measured:
    """A measurement: `samples` were drawn in `seconds`.

    classes: number of classes with votes, the mean over ranges of samples.
    """

    seconds: float
    samples: int
    classes: float = 1.0

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds
