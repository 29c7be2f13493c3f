from decimal import Context, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drs_ray.certificates.rounding import (
    apart,
    format_down,
    format_ratio_down,
    format_ratio_up,
    format_up,
    shortest_between,
)

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


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9), st.integers(0, 6))
def test_two_numbers_are_shown_in_their_order(first: float, second: float, places: int) -> None:
    low, high = sorted((first, second))
    texts = apart(low, high, places)
    if low < high:
        assert Decimal(low) <= Decimal(texts[0]) < Decimal(texts[1]) <= Decimal(high)
    else:
        assert [float(text) for text in texts] == [low, high]


def test_no_more_digits_than_it_takes() -> None:
    assert apart(0.25, 0.75, 3) == ("0.250", "0.750")
    assert apart(0.97761, 0.977999, 3) == ("0.9777", "0.9779")
    assert apart(1.0, 1.0, 3) == ("1", "1")


@given(st.floats(1e-30, 1e9), st.floats(1, 3))
def test_the_shortest_number_between_two(low: float, factor: float) -> None:
    high = low * factor
    found = shortest_between(low, high)
    assert low <= found <= high
    if factor >= 2:
        assert len(Decimal(repr(found)).normalize().as_tuple().digits) == 1


def test_the_shortest_numbers_of_a_few() -> None:
    assert shortest_between(0.0099, 0.0111) == 0.01
    assert shortest_between(149_680, 153_500) == 150_000
    assert shortest_between(0.1, 0.1) == 0.1
