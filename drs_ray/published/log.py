"""Logs of other code in the field's formats (Cohen et al. 2019), read strictly; each mistake is named with its line.

One row per image, separated by tabs (or commas); predict is -1 where the smoothed classifier abstains. Such a log has
no votes, so its radii cannot be checked against votes. There are three kinds:

- certify.py, `idx label predict radius correct time`: a radius for each image;
- predict.py, `idx label predict correct time`: predictions, and no radius;
- adaptive sampling (Horvath et al. 2022, smoothing-ensembles), `idx label predict "radius proved" correct ... time`:
  1 where one radius, which the log does not name, was certified, else -1.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from drs_ray.certificates.radius import Floats
from drs_ray.certificates.votes import Integers
from drs_ray.errors import ConfigError, DataError, counted
from drs_ray.results.tables import ABSTAIN

Kind = Literal["radii", "predictions", "one radius"]
"""What a log has for each image: its radius, no radius, or whether one radius was certified."""

COLUMNS = ("idx", "label", "predict", "radius", "correct")
"""Required columns, in any order; `time` is kept too, and others are ignored."""
PREDICTIONS = ("idx", "label", "predict", "correct", "time")
"""All columns that a log of predictions may have: another column might be the radius under another name."""
PROVED = "radius proved"
"""The column in place of `radius` in a log that says for each image whether one radius was certified."""
TIME = "time"

# Patterns, because int() and float() accept more: 1_000, nan, digits of other scripts.
_WHOLE = re.compile(r"[+-]?[0-9]{1,30}"), "a whole number"
_NUMBER = re.compile(r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,9})?"), "a finite number >= 0"
_YES_OR_NO = re.compile(r"-?1"), "1 (certified) or -1"
_KINDS = {
    "idx": _WHOLE,
    "label": _WHOLE,
    "predict": _WHOLE,
    "radius": _NUMBER,
    PROVED: _YES_OR_NO,
    "correct": _WHOLE,
}
_PROVED_COLUMNS = tuple(PROVED if name == "radius" else name for name in COLUMNS)
_SEPARATORS = {"\t": "tabs", ",": "commas"}


@dataclass(frozen=True, eq=False)
class PublishedLog:
    """The images of a log, in its order.

    image_id, label, prediction: int64 [N], prediction -1 where abstaining. radius: float64 [N], pixel units, 0 where
    abstaining, and for all in a log of predictions. step: float64 [N], one unit in the radius' last printed digit, 0
    where no radius was printed. time: N texts as printed, None if the log has none. notes: values that were not read as
    written, with the reasons.
    """

    kind: Kind
    image_id: Integers
    label: Integers
    prediction: Integers
    radius: Floats
    step: Floats
    time: tuple[str, ...] | None
    notes: tuple[str, ...]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the prediction equals the label [N]; False where abstaining."""
        return np.asarray((self.prediction == self.label) & (self.prediction != ABSTAIN), np.bool_)


def parse_log(data: bytes, source: str, radius: float | None = None) -> PublishedLog:
    """Read the bytes of a log. A class with radius 0 is read as an abstention, because nothing is certified.

    Args:
        data: the log.
        source: name of the log, for messages.
        radius: pixel units; the one radius of a log with the column `PROVED`, None for other logs.

    Raises:
        DataError: one line with the file, the line, the mistake and the remedy.
        ConfigError: a radius is missing, or given for a log that does not need one.
    """
    try:
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: is not text (UTF-8); give a log in the format of certify.py") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(f"{source}: is empty; give a log in the format of certify.py")
    separator = "\t" if "\t" in lines[0] else ","
    names = _fields(lines[0], separator, source, 1)
    while len(names) > 1 and not names[-1]:  # the line ends with a separator
        names.pop()
    kind = _kind(names, source)
    if len(lines) == 1:
        raise DataError(f"{source}: has a header alone, in line 1, and no image; give the log of a run that has some")
    if kind == "one radius" and radius is None:
        raise ConfigError(
            f"{source}: its column `{PROVED}` says whether one radius was certified and not which; name it: --radius "
            "0.5 (Python: radius=0.5)"
        )
    if kind != "one radius" and radius is not None:
        raise ConfigError(
            f"{source}: radius is for a log with the column `{PROVED}`, which this one lacks; leave it out"
        )
    wanted = {"radii": COLUMNS, "predictions": PREDICTIONS[:4], "one radius": _PROVED_COLUMNS}[kind]
    where = [names.index(name) for name in (*wanted, *([TIME] if TIME in names else []))]
    rows = [
        [fields[index] for index in where]
        for fields in (_row(line, len(names), separator, source, at) for at, line in enumerate(lines[1:], start=2))
    ]
    columns = dict(zip((*wanted, TIME), zip(*rows, strict=True), strict=False))
    _check_rows(rows, wanted, source)
    image_id, label, predict, correct = (
        np.array([int(text) for text in columns[name]], np.int64) for name in ("idx", "label", "predict", "correct")
    )
    _check_ids(image_id.tolist(), source)
    steps = np.zeros(len(rows))
    certified = predict != ABSTAIN
    radii = np.zeros(len(rows))
    if kind == "radii":
        radii, steps = np.array(columns["radius"], np.float64), _steps(columns["radius"])
        certified = radii > 0
    elif kind == "one radius":
        certified = np.array(columns[PROVED]) == "1"
        radii = np.where(certified, radius or 0.0, 0.0)
    notes = [
        *_abstention_notes(
            predict, certified, "radius 0, which certifies nothing," if kind == "radii" else "no proved radius"
        ),
        *_correct_notes(label, predict, certified, correct, source),
    ]
    prediction = np.where(certified, predict, ABSTAIN)
    times = tuple(" ".join(text.split()) for text in columns[TIME]) if TIME in names else None
    return PublishedLog(kind, image_id, label, prediction, radii, steps, times, tuple(notes))


def _kind(names: Sequence[str], source: str) -> Kind:
    twice = len(set(names)) < len(names)
    if not twice and set(PREDICTIONS) >= set(names) >= set(PREDICTIONS[:4]):
        return "predictions"
    proved = PROVED in names and "radius" not in names
    wanted = _PROVED_COLUMNS if proved else COLUMNS
    missing = [name for name in wanted if name not in names]
    if missing or twice:
        wrong = f"lacks {', '.join(missing)}" if missing else "names a column twice"
        raise DataError(
            f"{source}: line 1: the header {wrong}; it must name {', '.join(wanted)} once each, separated by tabs or "
            "commas"
        )
    return "one radius" if proved else "radii"


def _fields(line: str, separator: str, source: str, number: int) -> list[str]:
    """A line's fields without surrounding blanks; fields may be quoted as in csv."""
    if '"' not in line:
        return [field.strip() for field in line.split(separator)]
    try:
        return [
            field.strip() for field in next(csv.reader([line], delimiter=separator, strict=True, skipinitialspace=True))
        ]
    except csv.Error as error:
        raise DataError(
            f"{source}: line {number}: its quotes do not match ({error}); mend or remove the line"
        ) from error


def _row(line: str, width: int, separator: str, source: str, number: int) -> list[str]:
    fields = _fields(line, separator, source, number)
    if len(fields) == width + 1 and not fields[-1]:  # the line ends with a separator
        fields.pop()
    if len(fields) != width:
        raise DataError(f"{source}: line {number}: {_miscounted(line, len(fields), width, separator)}")
    return fields


def _check_rows(rows: Sequence[Sequence[str]], columns: Sequence[str], source: str) -> None:
    for number, row in enumerate(rows, start=2):
        fields = dict(zip(columns, row, strict=False))
        for name, text in fields.items():
            kind, must = _KINDS[name]
            if not kind.fullmatch(text):
                raise DataError(
                    f"{source}: line {number}: {name} must be {must}, got {text!r}; mend or remove the line"
                )
        idx, predict = int(fields["idx"]), int(fields["predict"])
        if not 0 <= idx < 2**63:
            raise DataError(f"{source}: line {number}: idx must be the number of an image, >= 0, got {idx}")
        for name in ("label", "predict"):
            if not ABSTAIN <= int(fields[name]) < 2**31:
                raise DataError(f"{source}: line {number}: {name} must be a class (or -1: none), got {fields[name]}")
        if not -(2**31) <= int(fields["correct"]) < 2**31:
            raise DataError(f"{source}: line {number}: correct must be 0 or 1, got {fields['correct']}")
        radius = float(fields.get("radius", 0))
        if not math.isfinite(radius):
            raise DataError(f"{source}: line {number}: radius must be {_NUMBER[1]}, got {fields['radius']}")
        if predict == ABSTAIN and radius > 0:
            raise DataError(
                f"{source}: line {number}: an abstention (predict -1) has radius {fields['radius']}; it must be 0"
            )
        if predict == ABSTAIN and fields.get(PROVED) == "1":
            raise DataError(f"{source}: line {number}: an abstention (predict -1) has {PROVED} 1; it must be -1")


def _miscounted(line: str, found: int, width: int, separator: str) -> str:
    """Why a line has another number of fields than the header."""
    expected = f"{counted(found, 'field')}, the header has {width}"
    for other, name in _SEPARATORS.items():
        if other != separator and len(line.split(other)) == width:
            return f"{expected}: it is separated by {name}, the header by {_SEPARATORS[separator]}; use one of them"
    if separator not in line and len(line.split()) == width:
        return f"{expected}: it is separated by spaces, the header by {_SEPARATORS[separator]}; use one of them"
    return f"{expected}; mend or remove the line"


def _steps(printed: Sequence[str]) -> Floats:
    """One unit in the last digit of each radius; trailing zeros need not be printed: 0.52 may mean 0.520.

    All radii of a log have the same number of significant digits (certify.py: three), or of decimals: as many as its
    longest radius. The larger step of the two is taken, so that no radius is read too precisely.
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


def _abstention_notes(predict: Integers, certified: NDArray[np.bool_], found: str) -> Iterator[str]:
    count = int(((predict != ABSTAIN) & ~certified).sum())
    if count:
        yield f"a class with {found} counts as an abstention (images: {count:,})"


def _correct_notes(
    label: Integers, predict: Integers, certified: NDArray[np.bool_], correct: Integers, source: str
) -> Iterator[str]:
    """The column `correct` must follow from the others; some code prints a running total instead."""
    hit = (predict == label).astype(np.int64)
    wrong = np.flatnonzero((correct != hit) & ~((correct == 0) & ~certified))
    if not len(wrong):
        return
    if not (np.diff(correct, prepend=0) == hit).all():
        row = int(wrong[0])
        raise DataError(
            f"{source}: line {row + 2}: correct is {correct[row]}, but label is {label[row]} and predict "
            f"{predict[row]}; mend the line"
        )
    yield "the column correct is a running total; what is correct was taken from label and predict"
