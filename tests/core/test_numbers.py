"""Numbers as text: digits, counts, sizes and times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmcore.numbers import GAP, about, count, duration, rounded, short, size


@pytest.mark.parametrize(
    ("value", "spread", "expected"),
    [
        (3.45678, 0.234, ("3.5", "0.2")),
        (3.45678, 0.123, ("3.46", "0.12")),
        (3.45678, 0.096, ("3.46", "0.10")),
        (1.7, 0.19, ("1.70", "0.19")),
        (0.0123456, 0.00042, ("0.0123", "0.0004")),
        (1234.5, 56.0, ("1230", "60")),
        (0.0, 0.3, ("0.0", "0.3")),
        (-0.0001, 0.3, ("0.0", "0.3")),
        (44.0, 0.0, ("44.0", "")),
        (0.12345, 0.0, ("0.123", "")),
        (12345.0, 0.0, ("12300", "")),
        (0.0, 0.0, ("0.00", "")),
        (123.456789, 1e-9, ("123.457", "1e-09")),
    ],
)
def test_rounding(value: float, spread: float, expected: tuple[str, str]) -> None:
    assert rounded(value, spread) == expected


@pytest.mark.parametrize(
    ("value", "spread", "expected"),
    [
        (81.04, 0.03, ("81.0", "0.03")),
        (0.2985, 0.0019, ("0.298", "0.002")),
        (0.071, 0.012, ("0.071", "0.012")),
        (4.4, 0.79, ("4.4", "0.8")),
    ],
)
def test_rounding_to_three_digits_and_no_more(value: float, spread: float, expected: tuple[str, str]) -> None:
    assert rounded(value, spread, 3) == expected


@given(st.floats(1e-6, 1e6), st.floats(1e-3, 1.0))
def test_rounding_changes_a_value_by_less_than_its_spread(value: float, relative: float) -> None:
    spread = value * relative
    shown, over = rounded(value, spread)
    assert abs(float(shown) - value) <= 0.51 * spread
    assert float(over) == pytest.approx(spread, rel=0.34)


def test_counts() -> None:
    assert count(412_345) == f"412{GAP}345"
    assert count(409_600_000) == f"409.6{GAP}M"
    assert count(3_276_800_000) == f"3{GAP}277{GAP}M"


def test_sizes() -> None:
    assert [size(n) for n in (0, 999, 1000, 55_733_891, 2.5e9, 7e15)] == ["0", "999", "1k", "55.7M", "2.5G", "7P"]
    texts = ["0 B", "999 B", "1 kB", "33.2 MB", "2.5 GB"]
    assert [size(n, "B", " ") for n in (0, 999, 999.7, 33_167_528, 2.5e9)] == texts


@given(st.floats(0, 9e17), st.integers(3, 6))
def test_a_size_never_shows_an_exponent_and_keeps_its_digits(number: float, digits: int) -> None:
    text = size(number, digits=digits)
    assert "e+" not in text
    amount, prefix = (text[:-1], text[-1]) if text[-1].isalpha() else (text, "")
    assert float(amount) * 1000 ** ["", "k", "M", "G", "T", "P"].index(prefix) == pytest.approx(
        number, rel=0.5 * 10.0 ** (1 - digits) + 1e-9
    )


def test_times() -> None:
    assert [duration(s) for s in (1.5, 119, 120, 7200, 172_800)] == ["1.5 s", "119 s", "2 min", "2 h", "2 d"]
    assert [about(s) for s in (0, 12, 47, 95, 3600)] == ["5 s", "10 s", "1 min", "2 min", "60 min"]


def test_only_floats_lose_digits() -> None:
    assert [short(value) for value in (1234567, 0.123456, True, "constant")] == ["1234567", "0.123", "True", "constant"]
