"""How long a run took: one small object per driver session that ended, beside the counts (never inside a part)."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime

from drs_ray.errors import CountsError
from drs_ray.results.store import Store

SESSIONS_PREFIX = "sessions/"


def write_session(store: Store, started: datetime) -> None:
    """Note that a driver worked on the run since `started`."""
    seconds = (datetime.now(UTC) - started).total_seconds()
    content = {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
    }
    key = f"{SESSIONS_PREFIX}{started:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.json"
    store.put(key, json.dumps(content).encode())


def total_seconds(store: Store) -> float | None:
    """Seconds of all sessions that ended; None where none did. A session that was killed left no note.

    Raises:
        CountsError: a note that cannot be read.
    """
    seconds = []
    for item in store.list(SESSIONS_PREFIX):
        try:
            seconds.append(float(json.loads(store.get(item.key))["seconds"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CountsError(f"{store.uri}/{item.key}: not a session note; remove it") from error
    return sum(seconds) if seconds else None
