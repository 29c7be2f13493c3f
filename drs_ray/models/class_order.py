"""The classes of a model from elsewhere against those of the data set: their number, and their order by names."""

from __future__ import annotations

from collections.abc import Sequence

from drs_ray.config.class_names import first_difference, first_moved, plain_names
from drs_ray.errors import ClassifierError, counted


def check_number(where: str, number: int, num_classes: int) -> None:
    """Refuse a model with another number of classes than the data set.

    Raises:
        ClassifierError: naming `where`, the file that says the model's number.
    """
    if number != num_classes:
        raise ClassifierError(
            f"{where}: the classifier has {counted(number, 'class')}, the run {num_classes}; choose a data set and a "
            "classifier of the same classes"
        )


def check_channels_of(where: str, number: int, channels: int) -> None:
    """Refuse a model for images with another number of channels than the data set's.

    Raises:
        ClassifierError: naming `where`, the file that says the model's number.
    """
    if number != channels:
        raise ClassifierError(
            f"{where}: the classifier takes images with {counted(number, 'channel')}, the data set has {channels}; "
            "choose a data set and a classifier of as many channels"
        )


def check_order(where: str, names: Sequence[str], classes: Sequence[str] | None) -> list[str]:
    """Compare the class names of a model from elsewhere with the data set's, in order of class number.

    Other people may name the same classes otherwise, so only names at other places are an error. Case, underscores and
    hyphens do not count.

    Returns:
        A warning if some names differ, else nothing.

    Raises:
        ClassifierError: a class has the name of another class, so that votes would be for wrong classes.
    """
    there, here = plain_names(names), plain_names(classes or ())
    difference = first_difference(there, here)
    if difference is None:
        return []
    moved = first_moved(there, here)
    if moved is not None:
        raise ClassifierError(
            f"{where}: its classes are in another order than the run's: {moved}; name the data set's classes in the "
            "classifier's order in dataset.classes, or choose another classifier"
        )
    return [f"{where}: some of its class names are not the data set's; check that they mean the same: {difference}"]
