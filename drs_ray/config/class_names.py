"""Lists of class names in order of class number: reading them from a file, and comparing them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def read_class_names(file: Path) -> list[str]:
    """The names in a text file, one per line in order of class number; blank lines do not count.

    Raises:
        ValueError: the file cannot be read, is not UTF-8, or has no names.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ValueError(f"the file {file} cannot be read ({reason}); it must have a class name per line") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"the file {file} is empty; it must have a class name per line")
    return names


def first_difference(there: Sequence[str] | None, here: Sequence[str] | None) -> str | None:
    """The first difference of two lists of class names, in words; None if they are equal or one is not known."""
    if not there or not here or list(there) == list(here):
        return None
    pairs = enumerate(zip(there, here, strict=False))
    at = next((index for index, (old, new) in pairs if old != new), min(len(there), len(here)))
    old, new = (repr(names[at]) if at < len(names) else "missing" for names in (there, here))
    return f"class {at} is {old} there, {new} here ({len(there)} classes there, {len(here)} here)"


def first_moved(there: Sequence[str], here: Sequence[str]) -> str | None:
    """The first class here whose name belongs to another class there, in words; None if there is none.

    Unlike `first_difference` it allows other names for the same classes.
    """
    for number, name in enumerate(here):
        if name in there and name not in there[number : number + 1]:
            return f"{name!r} is class {there.index(name)} there, {number} here"
    return None


def plain_names(names: Sequence[str]) -> list[str]:
    """The names in lower case, with single spaces in place of underscores and hyphens, to compare other people's."""
    return [re.sub(r"[\s_-]+", " ", name).strip().casefold() for name in names]


def out_of_number_order(names: Sequence[str]) -> bool:
    """Whether names that differ only in one number (0, 1, 10, 2 or n1, n10, n2) are not in the order of this number."""
    parts = [re.fullmatch(r"(\D*)(\d+)(\D*)", name, re.ASCII) for name in names]
    numbers = [int(part[2]) for part in parts if part is not None]
    around = {(part[1], part[3]) for part in parts if part is not None}
    return None not in parts and len(around) == 1 and numbers != sorted(numbers)


def shown(name: object) -> str:
    """A file's name or path for printing: bytes that are not UTF-8 are escaped."""
    return str(name).encode("utf-8", "backslashreplace").decode()
