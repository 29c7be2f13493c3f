"""Logs of other code in the field's format (Cohen et al. 2019, certify.py): read strictly, each mistake with its line.

One row per image, `idx label predict radius correct time`, separated by tabs (or commas); predict is -1 where the
smoothed classifier abstains. Nothing in such a log can be checked against votes: there are none in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from drs_ray.certificates.radius import Floats
from drs_ray.certificates.votes import Integers
from drs_ray.errors import DataError, counted
from drs_ray.results.tables import ABSTAIN

COLUMNS = ("idx", "label", "predict", "radius", "correct")
"""Columns that a log must have, in any order; others, such as `time`, are ignored."""

# Patterns, because int() and float() take more: 1_000, nan, digits of other scripts.
_WHOLE = re.compile(r"[+-]?[0-9]{1,30}"), "a whole number"
_NUMBER = re.compile(r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,9})?"), "a finite number >= 0"
_KINDS = (_WHOLE, _WHOLE, _WHOLE, _NUMBER, _WHOLE)
_SEPARATORS = {"\t": "tabs", ",": "commas"}


@dataclass(frozen=True, eq=False)
class PublishedLog:
    """Images as a log gives them, in its order.

    image_id, label, prediction: int64 [N], prediction -1 where abstaining. radius: float64 [N], pixel units, 0 where
    abstaining. unit: float64 [N], what one step of the radius' last printed digit is worth. notes: what was read
    otherwise than it stands there, and why.
    """

    image_id: Integers
    label: Integers
    prediction: Integers
    radius: Floats
    step: Floats
    notes: tuple[str, ...]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the prediction equals the label [N]; False where abstaining."""
        return np.asarray((self.prediction == self.label) & (self.prediction != ABSTAIN), np.bool_)


def parse_log(data: bytes, source: str) -> PublishedLog:
    """The bytes of a log -> its rows. A class with radius 0 is an abstention: nothing is certified there.

    Raises:
        DataError: one line that names the file, the line, what is wrong there and what to do.
    """
    try:
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: is not text (UTF-8); give a log in the format of certify.py") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(f"{source}: is empty; give a log in the format of certify.py")
    separator = "\t" if "\t" in lines[0] else ","
    names = [name.strip() for name in lines[0].split(separator)]
    missing = [name for name in COLUMNS if name not in names]
    if missing or len(set(names)) < len(names):
        wrong = f"lacks {', '.join(missing)}" if missing else "names a column twice"
        raise DataError(
            f"{source}: line 1: the header {wrong}; it must name {', '.join(COLUMNS)} once each, separated by tabs or "
            "commas"
        )
    if len(lines) == 1:
        raise DataError(f"{source}: has a header and no images")
    where = [names.index(name) for name in COLUMNS]
    rows = list(_rows(lines, len(names), separator, where, source))
    image_id, label, predict, printed, correct = (list(column) for column in zip(*rows, strict=True))
    _check_ids(image_id, source)
    labels, predicted, radius = np.array(label), np.array(predict), np.array(printed, np.float64)
    notes = [*_silent(predicted, radius), *_counted(labels, predicted, radius, np.array(correct), source)]
    prediction = np.where(radius > 0, predicted, ABSTAIN)
    return PublishedLog(np.array(image_id), labels, prediction, radius, _steps(printed), tuple(notes))


def _rows(
    lines: list[str], width: int, separator: str, where: list[int], source: str
) -> Iterator[tuple[int, int, int, str, int]]:
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split(separator)
        if len(fields) != width:
            raise DataError(f"{source}: line {number}: {_miscounted(line, len(fields), width, separator)}")
        row = [fields[index].strip() for index in where]
        for name, text, (kind, must) in zip(COLUMNS, row, _KINDS, strict=True):
            if not kind.fullmatch(text):
                raise DataError(
                    f"{source}: line {number}: {name} must be {must}, got {text!r}; mend or remove the line"
                )
        idx, label, predict, correct = (int(row[column]) for column in (0, 1, 2, 4))
        if not 0 <= idx < 2**63:
            raise DataError(f"{source}: line {number}: idx must be the number of an image, >= 0, got {idx}")
        for name, value in (("label", label), ("predict", predict)):
            if not ABSTAIN <= value < 2**31:
                raise DataError(f"{source}: line {number}: {name} must be a class (or -1: none), got {value}")
        if not math.isfinite(float(row[3])):
            raise DataError(f"{source}: line {number}: radius must be {_NUMBER[1]}, got {row[3]}")
        if predict == ABSTAIN and float(row[3]) > 0:
            raise DataError(f"{source}: line {number}: an abstention (predict -1) has radius {row[3]}; it must be 0")
        yield idx, label, predict, row[3], correct


def _miscounted(line: str, found: int, width: int, separator: str) -> str:
    """Why a line has another number of fields than the header."""
    expected = f"{counted(found, 'field')}, the header has {width}"
    for other, name in _SEPARATORS.items():
        if other != separator and len(line.split(other)) == width:
            return f"{expected}: it is separated by {name}, the header by {_SEPARATORS[separator]}; use one of them"
    if len(line.split()) == width:
        return f"{expected}: it is separated by spaces, the header by {_SEPARATORS[separator]}; use one of them"
    return f"{expected}; mend or remove the line"


def _steps(printed: list[str]) -> Floats:
    """How far apart neighbouring radii of the log are, as its radii show: 0.52 may be 0.520 with its last digit unsaid.

    A log has so many significant digits (certify.py: three), or so many decimals: whatever its longest radius has, for
    trailing zeros need not be printed. The larger step of the two is taken, so that no radius is read too precisely.
    """
    numbers = [Decimal(text).as_tuple() for text in printed]
    values = np.array(printed, np.float64)
    longest = max(len(number.digits) for number in numbers)
    decimals = max(-int(number.exponent) for number in numbers)
    with np.errstate(divide="ignore"):
        first = np.where(values > 0, np.floor(np.log10(values)), 0.0)
    return np.asarray(np.maximum(10.0 ** (first - longest + 1), 10.0**-decimals), np.float64)


def _check_ids(ids: list[int], source: str) -> None:
    first: dict[int, int] = {}
    for number, image_id in enumerate(ids, start=2):
        if image_id in first:
            raise DataError(
                f"{source}: line {number}: image {image_id} is there a second time, first in line {first[image_id]}; "
                "an image has one certificate: remove one of the lines"
            )
        first[image_id] = number


def _silent(predict: Integers, radius: Floats) -> Iterator[str]:
    silent = int(((predict != ABSTAIN) & (radius == 0)).sum())
    if silent:
        yield f"a class with radius 0, which certifies nothing, counts as an abstention (images: {silent:,})"


def _counted(label: Integers, predict: Integers, radius: Floats, correct: Integers, source: str) -> Iterator[str]:
    """The column `correct` must follow from the others; some code prints how many were right so far."""
    hit = (predict == label).astype(np.int64)
    wrong = np.flatnonzero((correct != hit) & ~((correct == 0) & (radius == 0)))
    if not len(wrong):
        return
    if not (np.diff(correct, prepend=0) == hit).all():
        row = int(wrong[0])
        raise DataError(
            f"{source}: line {row + 2}: correct is {correct[row]}, but label is {label[row]} and predict "
            f"{predict[row]}; mend the line"
        )
    yield "the column correct is a running total; what is correct was taken from label and predict"
