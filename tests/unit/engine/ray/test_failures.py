"""Ray's exceptions as the engine's own."""

from __future__ import annotations

import pytest

from drs_ray.engine.ray.failures import last_line, ray_or_resume
from drs_ray.errors import EngineError, InterruptedRunError


def test_an_interruption_within_ray_stays_one():
    interruption = InterruptedRunError("interrupted by SIGINT", 2)
    with pytest.raises(InterruptedRunError) as caught, ray_or_resume():
        raise SystemError("<CoreWorker.wait> returned a result with an exception set") from interruption
    assert caught.value is interruption


def test_another_system_error_is_a_bug():
    with pytest.raises(SystemError), ray_or_resume():
        raise SystemError("bad argument")


def test_a_lost_connection_says_how_to_go_on():
    line = r"^Ray was lost \(ConnectionError: gone\).*run the same command to resume$"
    with pytest.raises(EngineError, match=line), ray_or_resume():
        raise ConnectionError("first\n gone ")


def test_the_last_line_says_most():
    assert last_line(ValueError("traceback\n  cause  \n")) == "cause"
    assert last_line(ValueError()) == "ValueError"
