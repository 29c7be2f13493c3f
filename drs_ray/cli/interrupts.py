"""Turns SIGINT and SIGTERM into an exception in the main thread: a run ends its workers and says how to resume."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from drs_ray.errors import InterruptedRunError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible(how_to_go_on: str) -> Iterator[None]:
    """Within the block, the first SIGINT or SIGTERM raises `InterruptedRunError`; the second one kills the process.

    At most the units in flight are lost, because parts are written whole.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise InterruptedRunError(f"interrupted by {signal.Signals(number).name}; {how_to_go_on}", number)

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
