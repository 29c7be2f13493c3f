"""What can go wrong, as one tree of exceptions: the command line prints their message as one line, without a traceback.

A message says what was given, the rule, the value and the remedy. Anything that is not a `DrsError` is a bug.
"""

from __future__ import annotations


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number and what it counts, as messages say it: `1 image`, `1,200 images`, `2 classes`."""
    if plural is None:
        plural = noun + ("es" if noun.endswith(("s", "x", "ch")) else "s")
    return f"{count:,} {noun if count == 1 else plural}"


class DrsError(Exception):
    """Base of all errors that drs-ray raises on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(DrsError):
    """A config key, an override or a command-line argument that cannot be used."""

    exit_code = 2


class DataError(DrsError):
    """A data set or an image that is missing, broken or of the wrong size."""


class ClassifierError(DrsError):
    """A base classifier that cannot be built, loaded or trusted (wrong checkpoint, NaN logits)."""


class StoreError(DrsError):
    """A place (directory or bucket) that cannot be read or written.

    `transient`: the server is overloaded, failing or not to be reached, so that the same request may succeed later.
    """

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class MissingObjectError(StoreError):
    """The store works, but holds no object under the key that was asked for."""


class CountsError(DrsError):
    """Vote counts that are truncated, foreign, duplicated, missing or do not add up."""


class SoundnessError(DrsError):
    """A certificate that a confirmed perturbation contradicts, or that the counts do not prove."""


class EngineError(DrsError):
    """A run that the engine could not carry through."""


class UnitsSetAsideError(EngineError):
    """The run ended, but some units could not be computed; all the others are stored."""

    exit_code = 3


class JobEndedError(EngineError):
    """A submitted job that did not end well; `exit_code` is that of the job's own command."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class InterruptedRunError(BaseException):
    """The user or the scheduler asked the run to stop (exit code 128 + signal, as shells expect).

    Not an `Exception`, like KeyboardInterrupt: no handler on its way may take it for a unit's or a classifier's fault.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
