"""What Ray's exceptions mean for a run: Ray is lost, a node is, a worker's process is gone, or a call has raised."""

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
    """Failures of Ray itself as one line that says how to go on, and interruptions as they are. Also a decorator."""
    try:
        yield
    except SystemError as error:  # what Ray's compiled code makes of an exception that a signal's handler raised
        if isinstance(error.__cause__, InterruptedRunError):
            raise error.__cause__ from None
        raise
    except (RayError, ConnectionError) as error:
        raise EngineError(
            f"Ray was lost ({type(error).__name__}: {last_line(error)}); what is stored is kept: "
            "start Ray again and run the same command to resume"
        ) from error


def last_line(error: BaseException) -> str:
    """The line of a message that says most: Ray puts tracebacks and identifiers before it."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip()[:200] if lines else type(error).__name__


def node_was_lost(error: RayError) -> bool:
    """Whether a worker went with its node, or cannot be reached there: nothing that its unit did."""
    if isinstance(error, NodeDiedError | ActorUnavailableError | ObjectLostError):
        return True
    if isinstance(error, RayActorError) and error.preempted:
        return True
    return "node has died" in str(error)  # Ray 2.60 knows the reason of an ActorDiedError, but gives its text alone


def start_error(sub_image: int, error: RayTaskError) -> DrsError:
    """What to raise when a worker's start raised: its own error, or what it was."""
    if isinstance(error.cause, DrsError):
        return error.cause
    return EngineError(f"sub-image {sub_image}: worker cannot start: {reason_of(error)}")


def reason_of(error: RayTaskError) -> str:
    """What the call itself raised, in one line."""
    if isinstance(error.cause, DrsError):
        return str(error.cause)
    return last_line(error)
