"""Opens the executor of `engine.address`: this process or Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from drs_ray.config import EngineConfig
from drs_ray.engine.executor import Executor
from drs_ray.engine.observer import Observer


@contextmanager
def open_executor(engine: EngineConfig, observer: Observer | None = None) -> Iterator[Executor]:
    """The executor of `engine.address`, closed at the end. observer: receives a note of the Ray that `auto` found."""
    executor: Executor
    if engine.address == "inline":
        from drs_ray.engine.inline_executor import InlineExecutor

        executor = InlineExecutor()
    else:
        from drs_ray.engine.ray.executor import RayExecutor

        executor = RayExecutor(engine, observer or Observer())
    try:
        yield executor
    finally:
        executor.close()
