"""Numbers as text, rounded to the safe side: a displayed number never claims more than the computed one."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

import numpy as np

_LONGEST = 400  # digits: the largest float64 has 309 before the point


def format_down(value: float, digits: int) -> str:
    """The largest number with `digits` decimals that is <= the float's exact binary value: 0.4996 -> "0.49".

    0.3 is 0.2999... in binary and gives "0.29"; shares of images are exact ratios: see `format_ratio_down`.
    """
    return _fixed(value, digits, ROUND_FLOOR)


def format_up(value: float, digits: int) -> str:
    """The smallest number with `digits` decimals that is >= the float's exact binary value (for upper ends)."""
    return _fixed(value, digits, ROUND_CEILING)


def format_ratio_down(part: int, whole: int, digits: int) -> str:
    """part / whole rounded down without passing through a float: 57 of 100 is "0.570", 2 of 3 is "0.666"."""
    return _shifted(part * 10**digits // whole, digits)


def format_ratio_up(part: int, whole: int, digits: int) -> str:
    """part / whole rounded up without passing through a float: 1 of 3 is "0.334"."""
    return _shifted(-(-part * 10**digits // whole), digits)


def exact_text(value: float) -> str:
    """The shortest decimal number that reads back as this float: "0.25", "1", "0.7071067811865476"."""
    return str(np.format_float_positional(value, trim="-"))


def apart(low: float, high: float, digits: int) -> tuple[str, str]:
    """low rounded up and high rounded down, with enough decimals to show that low < high.

    For messages that say so: 0.97761 and 0.977999 become "0.9777" and "0.9779", not "0.978" and "0.977".

    Args:
        low: finite.
        high: finite; if it is not above `low`, both are written in full.
        digits: smallest number of decimals.
    """
    while low < high:
        texts = format_up(low, digits), format_down(high, digits)
        if Decimal(texts[0]) < Decimal(texts[1]):
            return texts
        digits += 1
    return exact_text(low), exact_text(high)


def shortest_between(low: float, high: float) -> float:
    """The smallest of the numbers in [low, high] with the fewest significant digits: 0.01 for 0.0099 and 0.0111.

    Args:
        low: > 0.
        high: finite, not below `low`.
    """
    for digits in range(1, 18):
        exponent = Decimal(low).adjusted() + 1 - digits
        rounded = float(Decimal(low).quantize(Decimal(1).scaleb(exponent), ROUND_CEILING, Context(_LONGEST)))
        if low <= rounded <= high:
            return rounded
    return low


def _fixed(value: float, digits: int, rounding: str) -> str:
    if not math.isfinite(value):
        return str(value)
    rounded = Decimal(value).quantize(Decimal(1).scaleb(-digits), rounding, Context(_LONGEST + digits))
    return format(rounded.copy_abs() if rounded.is_zero() else rounded, "f")  # no "-0.00"


def _shifted(scaled: int, digits: int) -> str:
    return format(Decimal(scaled).scaleb(-digits, Context(_LONGEST + digits)), "f")
