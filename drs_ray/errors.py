"""The exceptions of drs-ray. The command line prints the message of one as one line, without a traceback.

A message gives the name of the faulty thing, the rule, the value and the remedy. Any other exception is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, for messages: `1 image`, `1,200 images`, `2 classes`."""
    if plural is None:
        plural = noun + ("es" if noun.endswith(("s", "x", "ch")) else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def sub_images_text(sub_images: Sequence[int]) -> str:
    """Sub-images for messages: `sub-image 0`, `sub-images 0 and 1`, `sub-images 0, 1 and 2`."""
    *others, last = map(str, sub_images)
    return f"sub-images {', '.join(others)} and {last}" if others else f"sub-image {last}"


class DrsError(Exception):
    """Base of all errors that drs-ray raises on purpose; `exit_code` is the exit code of the command line."""

    exit_code = 1


class ConfigError(DrsError):
    """A config key, an override or a command-line argument that cannot be used."""

    exit_code = 2


class DataError(DrsError):
    """A data set or an image that is missing, broken or of the wrong size."""


class ClassifierError(DrsError):
    """A base classifier that cannot be built, loaded or trusted (wrong checkpoint, NaN logits)."""


class DeviceLostError(DrsError):
    """A GPU that no longer works in this process, whose CUDA calls all fail from now on. No unit is to blame."""


class StoreError(DrsError):
    """A directory or bucket that cannot be read or written.

    `transient`: the server is overloaded, failing or unreachable, so that the same request may succeed later.
    """

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class MissingObjectError(StoreError):
    """The store works, but has no object under the requested key."""


class CountsError(DrsError):
    """Vote counts that are truncated, of another run, duplicated, missing or do not add up."""


class SoundnessError(DrsError):
    """A certificate that a confirmed perturbation contradicts, or that the counts do not prove."""


class EngineError(DrsError):
    """A run that the engine could not complete."""


class UnitsSetAsideError(EngineError):
    """The run ended, but some units could not be computed; all the others are stored."""

    exit_code = 3


class JobEndedError(EngineError):
    """A submitted job that did not succeed; `exit_code` is the exit code of the job's own command."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class InterruptedRunError(BaseException):
    """The user or the scheduler asked the run to stop (exit code 128 + signal, as shells expect).

    Like KeyboardInterrupt it is no `Exception`, so that no handler takes it for a fault of a unit or a classifier.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
