"""The last number of a text: what counts as one, its sign, and its exact value."""

# ruff: noqa: RUF001 - numbers are written with many signs

from fractions import Fraction

import pytest

from fgrpo.client.tasks.numbers import last_number
from fgrpo.client.tasks.rewards import number_match

CASES = {
    "sign": {"x = -5": -5, "\u22125": -5, "is \u22123.5.": "-3.5", "–5": -5, "$-5": -5, "-$5": -5,
        "= - 5": -5, "[1, -3]": -3},
    "no sign": {"10-20": 20, "pages 3–7": 7, "GPT-4": 4, "10 - 5": 5, "- 5": 5, "(3)-5": 5,
        "Answer--5": 5, "2024-01-02": 2},
    "thousands": {
        **dict.fromkeys(("1,234,567", "1 234 567", "1\u202f234\u00a0567", "1'234'567", "1_234_567"), 1234567),
        **dict.fromkeys((r"1\,234\,567", "1{,}234{,}567", "12,34,567", "1.234.567", "1.234.567,0"), 1234567),
        "1,234.50": "1234.5", "1.234,5": "1234.5", "-1,000": -1000, "1.234": "1.234", "1,234,56": 56,
        "(1,5)": 5, "2024 100": 100,
    },
    "powers": {
        **dict.fromkeys(("1e5", "1E+5", "10^5", "10⁵", "10**5", "1×10^5", r"1 \times 10^{5} km", "1 x 10⁵", "1e5km"),
        100000),
        "1.5E-3": "0.0015", "2^10": 1024, "-2^2": -4, "12 cm^2": 12, "12 m²": 12, "x_1 = 7, x_{12}": 7,
    },
    "fractions": {
        **dict.fromkeys(("3/4", "3 / 4", "3⁄4", "¾", r"\frac{3}{4}", r"\dfrac34"), "3/4"),
        **dict.fromkeys(("5/2", "2 1/2", "2½", r"2\frac{1}{2}", r"\boxed{2 1/2}"), "5/2"),
        r"-\frac{1}{2}": "-1/2", r"\frac{-1}{2}": "-1/2", "12/25/2024": 2024,
    },
    "surroundings": {
        "50%": 50, "42.": 42, "#### 42": 42, "**42**": 42, "_42_": 42, "$1,000.": 1000, "wait...5": 5,
        "5 kg": 5, "7th": 7,
        "40 g of CO2": 40, "答案是-5": -5, "１２": 12, "٣": 3, r"\approx5": 5, ".5": "0.5", "10:30": 30, "1.2.3": 3,
    },
    "none": dict.fromkeys(("", "none", "CO2", "3/0", "1e999999999", "9^99999", "0^-1", "9" * 10_001)),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_last_number(kind):
    expected = {text: None if value is None else Fraction(value) for text, value in CASES[kind].items()}
    assert {text: last_number(text) for text in expected} == expected


def test_numbers_of_400_digits_are_told_apart():
    long = "7" * 400
    assert number_match(f"it is {long}", long) == 1.0
    assert number_match(f"it is {long[:-1]}8", long) == 0.0
    assert number_match("0.1", "0.1" + "0" * 400 + "1") == 0.0


@pytest.mark.parametrize("piece", ["1,", "1 ", "1/", "(-", "a1", r"\frac{", "½", "_{", "1 000", "^2"])
def test_no_completion_takes_long(piece):
    last_number(piece * 20_000)
