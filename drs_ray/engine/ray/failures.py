"""Interprets Ray's exceptions: Ray is lost, a node is lost, a worker's process is dead, or a call has raised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
)

from drs_ray.errors import DrsError, EngineError, InterruptedRunError


@contextmanager
def ray_or_resume() -> Iterator[None]:
    """Turn failures of Ray into an EngineError that says how to resume; pass interruptions on. Also a decorator."""
    try:
        yield
    except SystemError as error:  # Ray's compiled code raises it after an exception in a signal handler
        if isinstance(error.__cause__, InterruptedRunError):
            raise error.__cause__ from None
        raise
    except (RayError, ConnectionError) as error:
        raise EngineError(
            f"Ray was lost ({type(error).__name__}: {last_line(error)}); what is stored is kept: "
            "start Ray again and run the same command to resume"
        ) from error


def last_line(error: BaseException) -> str:
    """The last line of a message: Ray puts tracebacks and identifiers before it."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip()[:200] if lines else type(error).__name__


def node_was_lost(error: RayError) -> bool:
    """Whether a worker's node was lost or cannot be reached, so that its unit is not to blame."""
    if isinstance(error, NodeDiedError | ActorUnavailableError | ObjectLostError):
        return True
    if isinstance(error, RayActorError) and error.preempted:
        return True
    return "node has died" in str(error)  # Ray 2.60 gives the reason of an ActorDiedError only as text


def start_error(sub_image: int, error: RayTaskError) -> DrsError:
    """The error to raise after a worker's start raised: its DrsError, or an EngineError with the reason."""
    if isinstance(error.cause, DrsError):
        return error.cause
    return EngineError(f"sub-image {sub_image}: worker cannot start: {reason_of(error)}")


def reason_of(error: RayTaskError) -> str:
    """The error that the call itself raised, in one line."""
    if isinstance(error.cause, DrsError):
        return str(error.cause)
    return last_line(error)
