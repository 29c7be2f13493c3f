from decimal import Context, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drs_ray.results.rounding import format_down, format_ratio_down, format_ratio_up, format_up

finite = st.floats(allow_nan=False, allow_infinity=False)
digits = st.integers(0, 12)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4996, "0.49"),
        (0.5, "0.50"),
        (0.29999999999999998, "0.29"),  # the float 0.3 is below 0.3
        (0.7, "0.69"),
        (0.1, "0.10"),  # the float 0.1 is above 0.1
        (0.0, "0.00"),
        (-0.0, "0.00"),
        (-0.001, "-0.01"),
        (-1.239, "-1.24"),
        (12.345, "12.34"),
        (2.0**80, "1208925819614629174706176.00"),
        (5e-324, "0.00"),
        (float("-inf"), "-inf"),
    ],
)
def test_format_down(value: float, text: str) -> None:
    assert format_down(value, 2) == text


@given(finite, digits)
def test_down_is_never_above_the_value_and_within_one_unit(value: float, places: int) -> None:
    shown, unit = Decimal(format_down(value, places)), Decimal(1).scaleb(-places)
    assert shown <= Decimal(value)
    assert Context(prec=1100).add(shown, unit) > Decimal(value)


@given(finite, digits)
def test_up_mirrors_down(value: float, places: int) -> None:
    assert Decimal(format_up(value, places)) == Decimal(format_down(-value, places)).copy_negate()


@given(st.data(), st.integers(1, 10**6), digits)
def test_ratios_are_exact(data: st.DataObject, whole: int, places: int) -> None:
    part = data.draw(st.integers(0, whole))
    down, up = Decimal(format_ratio_down(part, whole, places)), Decimal(format_ratio_up(part, whole, places))
    assert down * whole <= part <= up * whole
    assert (up - down).scaleb(places) in (0, 1)


def test_ratios_of_round_numbers_stay_round() -> None:
    # 57/100 as a float is below 0.57; as a ratio it is 0.570.
    assert format_down(57 / 100, 3) == "0.569"
    assert format_ratio_down(57, 100, 3) == "0.570"
    assert format_ratio_down(2, 3, 3) == "0.666"
    assert format_ratio_up(1, 3, 3) == "0.334"
    assert format_ratio_down(7, 7, 0) == "1"
