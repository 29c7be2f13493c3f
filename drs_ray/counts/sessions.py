"""Notes of driver sessions: one small object for each session, beside the counts (never inside a part).

A note is written when a session begins, and replaced when it ends. A note without an end belongs to a driver that is
running or was killed.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from drs_ray.errors import CountsError, StoreError
from drs_ray.storage import Store

SESSIONS_PREFIX = "sessions/"
LISTED_SET_ASIDE = 1000
"""Largest number of units set aside that a note names, to keep notes small."""


@dataclass(frozen=True)
class SessionSummary:
    """Counts of a session. units_retried: number of retries. set_aside: reason by key, of the first such units.

    workers_lost: workers lost while they started or computed a unit, not workers that the driver ended.
    """

    units_done: int = 0
    samples: int = 0
    workers_lost: int = 0
    units_retried: int = 0
    units_set_aside: int = 0
    set_aside: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionNote:
    """A session. written: time of its start or, if `seconds` is known, of its end, by the store's clock."""

    started: str
    seconds: float | None
    written: float
    summary: SessionSummary


@contextmanager
def noted_session(store: Store, summary: Callable[[], SessionSummary]) -> Iterator[None]:
    """Write a note that a driver works on the run within the block, and at its end a note with the summary.

    A note that cannot be written is omitted, so that it neither stops a run nor hides the run's error.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    key = f"{SESSIONS_PREFIX}{started:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.json"
    begun: dict[str, Any] = {"started": started.isoformat(timespec="seconds")}
    with suppress(StoreError):
        store.put(key, json.dumps(begun).encode())
    try:
        yield
    finally:
        ended = begun | {"seconds": round(time.monotonic() - clock, 3)} | asdict(summary())
        with suppress(StoreError):
            store.put(key, json.dumps(ended).encode())


def read_sessions(store: Store) -> list[SessionNote]:
    """The notes, oldest first.

    Raises:
        CountsError: a note cannot be read.
    """
    notes = []
    for item in store.list(SESSIONS_PREFIX):
        if not item.key.endswith(".json"):
            continue  # not a note, but a file of the system or of another program
        try:
            content = json.loads(store.get(item.key))
            seconds = content.get("seconds")
            known = {each.name: content[each.name] for each in fields(SessionSummary) if each.name in content}
            notes.append(
                SessionNote(
                    started=str(content["started"]),
                    seconds=None if seconds is None else float(seconds),
                    written=item.modified,
                    summary=SessionSummary(**known),
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CountsError(f"{store.uri}/{item.key}: not a session note; remove it") from error
    return notes


def total_seconds(store: Store) -> tuple[float | None, bool]:
    """Seconds of all sessions that ended, None if none has; and whether all have: a killed one leaves no time.

    Raises:
        CountsError: a note cannot be read.
    """
    notes = read_sessions(store)
    seconds = [note.seconds for note in notes if note.seconds is not None]
    return sum(seconds) if seconds else None, len(seconds) == len(notes)
