"""Storing a part that took minutes to compute: a store that fails for a while must not cost it."""

from __future__ import annotations

import time

from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from drs_ray.errors import StoreError
from drs_ray.storage import Store

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
"""Pauses are drawn from 0 to a bound that doubles: thousands of workers must not come back at the same moment."""


class PartWriter:
    """A worker's way to its store: patient while the store fails, for `seconds` since it last worked.

    The patience is with the store, not with each part. Once it is used up every further part has one try, so that the
    driver soon sees that nothing can be stored; the first success restores it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._failing_since: float | None = None

    def put(self, store: Store, key: str, part: bytes) -> int:
        """Store the part; returns how often it was tried again.

        Raises:
            StoreError: at once where trying again is of no use; else it says for how long and how often it was tried.
        """
        began = time.monotonic()
        since = self._failing_since if self._failing_since is not None else began
        attempts = Retrying(
            retry=retry_if_exception(_is_transient),
            wait=wait_random_exponential(multiplier=FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS),
            stop=stop_before_delay(self._seconds - (began - since)),
            reraise=True,
        )
        try:
            attempts(store.put, key, part)
        except StoreError as error:
            self._failing_since = since if error.transient else None
            if not error.transient:
                raise
            raise StoreError(
                f"{error} (failing for {time.monotonic() - since:.0f} s; tries of this part: {_times(attempts)})",
                transient=True,
            ) from error
        self._failing_since = None
        return _times(attempts) - 1


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, StoreError) and error.transient


def _times(attempts: Retrying) -> int:
    return int(attempts.statistics["attempt_number"])
