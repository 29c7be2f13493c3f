"""What a worker says of a unit that it has done: its part is stored, and how long that took. No Ray, no torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """A stored unit.

    count_seconds, put_seconds: wall time of drawing the votes, and of storing them with all retries. part: the stored
    bytes, where the next stage depends on them.
    """

    count_seconds: float
    put_seconds: float
    part: bytes | None = None
