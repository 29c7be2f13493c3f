"""Stores parts with retries, so that a temporary failure of the store does not lose minutes of computation."""

from __future__ import annotations

import time

from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from drs_ray.errors import StoreError
from drs_ray.storage import Store

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
"""Pauses are random, from 0 to a bound that doubles: thousands of workers must not retry at the same moment."""


class PartWriter:
    """Writes a worker's parts. It retries a put until the store has been failing for `seconds`.

    The time limit is of the store, not of each part. After it has passed, each further part gets one attempt, so that
    the driver soon sees that nothing can be stored. The first success resets the limit.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._failing_since: float | None = None

    def put(self, store: Store, key: str, part: bytes) -> int:
        """Store the part; returns the number of retries.

        Raises:
            StoreError: at once if the failure is permanent; else after the retries, with their time and number.
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
