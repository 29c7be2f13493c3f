"""Logs of other code in the field's format (Cohen et al. 2019, certify.py): read strictly, each mistake with its line.

One row per image, `idx label predict radius correct time`, separated by tabs (or commas); predict is -1 where the
smoothed classifier abstains. Nothing in such a log can be checked against votes: there are none in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from drs_ray.certificates.radius import Floats
from drs_ray.certificates.votes import Integers
from drs_ray.errors import DataError
from drs_ray.results.tables import ABSTAIN

COLUMNS = ("idx", "label", "predict", "radius", "correct")
"""Columns that a log must have, in any order; others, such as `time`, are ignored."""

_DIGITS = 3  # significant ones, as certify.py prints; trailing zeros are not printed
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
    unit: Floats
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
        lines = data.decode("utf-8-sig").splitlines()
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
    image_id, label, predict, radius, unit, correct = (list(column) for column in zip(*rows, strict=True))
    _check_ids(image_id, source)
    log = PublishedLog(
        np.array(image_id, np.int64),
        np.array(label, np.int64),
        np.where(np.array(radius) > 0, predict, ABSTAIN).astype(np.int64),
        np.array(radius, np.float64),
        np.array(unit, np.float64),
        (),
    )
    return PublishedLog(
        log.image_id,
        log.label,
        log.prediction,
        log.radius,
        log.unit,
        tuple(_notes(log, np.array(predict), np.array(correct), source)),
    )


def _rows(
    lines: list[str], width: int, separator: str, where: list[int], source: str
) -> Iterator[tuple[int, int, int, float, float, int]]:
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split(separator)
        if len(fields) != width:
            raise DataError(f"{source}: line {number}: {_miscounted(line, len(fields), width, separator)}")
        idx, label, predict, radius, correct = (fields[index].strip() for index in where)
        try:
            certified = float(radius)
            row = int(idx), int(label), int(predict), certified, _unit(radius), int(correct)
        except ValueError as error:
            text = ", ".join(f"{name} {fields[index].strip()!r}" for name, index in zip(COLUMNS, where, strict=True))
            raise DataError(
                f"{source}: line {number}: not all of {text} are numbers; mend or remove the line"
            ) from error
        if not 0 <= row[0] < 2**63:
            raise DataError(f"{source}: line {number}: idx must be the number of an image, >= 0, got {row[0]}")
        for name, value in zip(("label", "predict"), row[1:3], strict=True):
            if not ABSTAIN <= value < 2**31:
                raise DataError(f"{source}: line {number}: {name} must be a class (or -1: none), got {value}")
        if not math.isfinite(certified) or certified < 0:
            raise DataError(f"{source}: line {number}: radius must be a finite number >= 0, got {radius}")
        if row[2] == ABSTAIN and certified > 0:
            raise DataError(f"{source}: line {number}: an abstention (predict -1) has radius {radius}; it must be 0")
        yield row


def _miscounted(line: str, found: int, width: int, separator: str) -> str:
    """Why a line has another number of fields than the header."""
    expected = f"{found} fields, the header has {width}"
    for other, name in _SEPARATORS.items():
        if other != separator and len(line.split(other)) == width:
            return f"{expected}: it is separated by {name}, the header by {_SEPARATORS[separator]}; use one of them"
    if len(line.split()) == width:
        return f"{expected}: it is separated by spaces, the header by {_SEPARATORS[separator]}; use one of them"
    return f"{expected}; mend or remove the line"


def _unit(text: str) -> float:
    """What a step of the last digit is worth; at least three significant digits were meant.

    Raises:
        ValueError: not a number.
    """
    value = float(text)
    if value <= 0 or not math.isfinite(value):
        return 0.0
    exponent = Decimal(text).as_tuple().exponent
    assert isinstance(exponent, int)  # it is finite
    return float(min(10.0**exponent, 10.0 ** (math.floor(math.log10(value)) - _DIGITS + 1)))


def _check_ids(ids: list[int], source: str) -> None:
    first: dict[int, int] = {}
    for number, image_id in enumerate(ids, start=2):
        if image_id in first:
            raise DataError(
                f"{source}: line {number}: image {image_id} is there a second time, first in line {first[image_id]}; "
                "an image has one certificate: remove one of the lines"
            )
        first[image_id] = number


def _notes(log: PublishedLog, predict: Integers, correct: Integers, source: str) -> Iterator[str]:
    """What was read otherwise than it stands there; a `correct` that cannot be is refused."""
    silent = int(((predict != ABSTAIN) & (log.radius == 0)).sum())
    if silent:
        yield f"{silent:,} images have a class with radius 0; nothing is certified there: counted as abstentions"
    hit = (predict == log.label).astype(np.int64)
    wrong = np.flatnonzero((correct != hit) & ~((correct == 0) & (log.radius == 0)))
    if not len(wrong):
        return
    if (np.diff(correct, prepend=0) == hit).all():
        yield "the column correct is a running total; what is correct was taken from label and predict"
        return
    row = int(wrong[0])
    raise DataError(
        f"{source}: line {row + 2}: correct is {correct[row]}, but label is {log.label[row]} and predict "
        f"{predict[row]}; mend the line"
    )
