"""Watches the cluster's head. A minute after the head is lost, Ray ends the driver's process with its own message. The
driver therefore checks the head itself, and ends earlier with a message that says how to resume.
"""

from __future__ import annotations

import socket
import time

import ray

from drs_ray.errors import EngineError

LOST_AFTER_SECONDS = 30.0
"""A head with fault tolerance may be restarted; by default, Ray waits 60 seconds for it."""
_ANSWER_SECONDS = 1.0


class Head:
    """The head of the cluster that this process is connected to."""

    def __init__(self) -> None:
        """The head is assumed to answer now."""
        client = ray.util.client.ray.is_connected()  # with ray://, Ray raises an error for a lost head
        self._address = "" if client else str(ray.get_runtime_context().gcs_address)
        self._answered = time.monotonic()

    def answers(self) -> bool:
        """Whether the head answers now.

        Raises:
            EngineError: the head has not answered for `LOST_AFTER_SECONDS`.
        """
        if not self._address:
            return True
        host, port = self._address.rsplit(":", 1)
        try:
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
        except OSError as error:
            silent = time.monotonic() - self._answered
            if silent < LOST_AFTER_SECONDS:
                return False
            raise EngineError(
                f"Ray was lost (its head at {self._address} gave no answer for {silent:.0f} s: {error}); what is "
                "stored is kept: start Ray again and run the same command to resume"
            ) from error
        self._answered = time.monotonic()
        return True
