"""Watching the cluster's head. When it is lost, Ray's own code ends the driver's process after a minute, with a line of
its own and no chance to say how to go on; so the driver looks for itself, and leaves before that.
"""

from __future__ import annotations

import socket
import time

import ray

from drs_ray.errors import EngineError

LOST_AFTER_SECONDS = 30.0
"""A head with fault tolerance may be started again; Ray waits for it for 60 seconds unless it is told otherwise."""
_ANSWER_SECONDS = 1.0


class Head:
    """The head of the cluster that this process is connected to."""

    def __init__(self) -> None:
        """It answers now."""
        client = ray.util.client.ray.is_connected()  # ray:// reports a lost head as an error of its own
        self._address = "" if client else str(ray.get_runtime_context().gcs_address)
        self._answered = time.monotonic()

    def answers(self) -> bool:
        """Whether it can be asked something now.

        Raises:
            EngineError: it could not for `LOST_AFTER_SECONDS`.
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
