"""The last number of a text, exactly. What counts as a number is said in `docs/rewards.md`."""

# ruff: noqa: RUF001 - numbers are written with many signs

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from unicodedata import normalize

_MOST_DIGITS = 10_000  # of a number, worked out: no completion may fill the memory or take seconds

_ONE_SPELLING = str.maketrans(dict.fromkeys("\u2212\u2013\uff0d\ufe63", "-") | dict.fromkeys("\u2044\u2215", "/"))
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_VULGAR = "[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅐⅑⅒]"
_TOP, _BOTTOM = r"\{\s*([+-]?[\d.,]+)\s*\}", r"\{\s*([\d.,]+)\s*\}"
_RAISED = r"(?:\^\s*[({]?\s*|\*\*)([+-]?\d+)[)}]?"

Replacement = str | Callable[[re.Match[str]], str]

# What is written in several ways is rewritten to one, in this order; _NUMBER reads that.
_REWRITES: list[tuple[re.Pattern[str], Replacement]] = [
    # Thousands: 1'234 or 10{,}000 to 1,234; then digits in groups of three, with one separator throughout, joined.
    (re.compile(r"(?<=\d)(?:\{,\}|\\,|[\u00a0\u2009\u202f'\u2019_\uff0c])(?=\d{3}(?!\d))"), ","),
    (re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3})+,\d+(?![\d,.]*\d)"), lambda m: m[0].replace(".", "").replace(",", ".")),
    (re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d,.]*\d)"), lambda m: m[0].replace(".", "")),
    (re.compile(r"(?<![\d.,])\d{1,3}([, ])\d{3}(?:\1\d{3})*(?!\d|\1\d)"), lambda m: m[0].replace(m[1], "")),
    (re.compile(r"(?<![\d.,])\d{1,2}(?:,\d{2})+,\d{3}(?!,?\d)"), lambda m: m[0].replace(",", "")),  # as in India
    # Fractions: a whole number before one stays apart from it.
    (re.compile(rf"(?<=\d)\s*\\[dt]?frac\s*{_TOP}\s*{_BOTTOM}"), r" \1/\2"),
    (re.compile(rf"\\[dt]?frac\s*{_TOP}\s*{_BOTTOM}"), r"\1/\2"),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r"\1/\2"),
    (re.compile(rf"(?<=\d)\s?{_VULGAR}"), lambda m: " " + normalize("NFKC", m[0].strip()).replace("\u2044", "/")),
    (re.compile(_VULGAR), lambda m: normalize("NFKC", m[0]).replace("\u2044", "/")),
    # Powers: 10⁵ to 10^5, and 2 x 10^5 to one number.
    (re.compile(r"(?<=\d)[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+"), lambda m: "^" + m[0].translate(_SUPERSCRIPTS)),
    (re.compile(rf"(?<=\d)\s*(?:[×·⋅*xX]|\\times|\\cdot)\s*10\s?{_RAISED}"), r"⏨\1"),
    (re.compile(rf"(?<=\d)\s?{_RAISED}"), r"^\1"),
]

_DIGITS = r"(?:\d+(?:\.\d+)?|(?<![\w.])\.\d+)"
_NUMBER = re.compile(
    rf"""
      \^\s*[({{]?\s*[+-]?\d+ | _\{{\s*\d+                           # an exponent of a letter, a subscript
    | (?<![\\A-Za-z_])[A-Za-z][A-Za-z_]*\d[A-Za-z0-9_]*             # a word with digits: CO2, x1
    | (?P<number>
        (?<!/)(?:(?P<whole>\d+)[ ])?(?P<top>{_DIGITS})\s?/\s?(?P<bottom>{_DIGITS})(?![\d/])
      | (?P<digits>{_DIGITS})(?:[eE](?P<exponent>[+-]?\d+)|⏨(?P<zeros>[+-]?\d+))?(?:\^(?P<power>[+-]?\d+))?
      )
    """,
    re.VERBOSE,
)


def last_number(text: str) -> Fraction | None:
    """Return the last number of a text; None if it has none, or if the last one is too large to be worked out."""
    text = text.translate(_ONE_SPELLING)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    last = None
    for match in _NUMBER.finditer(text):
        if match["number"] is not None:
            last = match
    if last is None:
        return None
    size = _size(last)
    return -size if size is not None and _is_negative(text[: last.start()]) else size


def _size(match: re.Match[str]) -> Fraction | None:
    if len(match["number"]) > _MOST_DIGITS:
        return None
    if match["bottom"] is not None:
        bottom = _exact(match["bottom"])
        return _exact(match["whole"] or "0") + _exact(match["top"]) / bottom if bottom else None
    number = _exact(match["digits"])
    exponent, power = match["exponent"] or match["zeros"] or "0", match["power"] or "1"
    if max(len(exponent), len(power)) > len(f"-{_MOST_DIGITS}"):
        return None
    zeros, times = int(exponent), int(power)
    digits = (len(match["digits"]) + abs(zeros)) * abs(times)
    if abs(zeros) > _MOST_DIGITS or (times != 1 and digits > _MOST_DIGITS) or (number == 0 and times < 0):
        return None
    return (number * Fraction(10) ** zeros) ** times


def _exact(digits: str) -> Fraction:
    return Fraction(Decimal(digits))


def _is_negative(before: str) -> bool:
    """Whether the text before a number ends in a minus of its own, not in that of a range, a difference or a list."""
    before = re.sub(r"\\?[$€£¥₹]\s?$", "", before)  # -$5
    signed = before.rstrip(" \u00a0")
    if not signed.endswith("-"):
        return False
    left = signed[:-1]
    if signed != before:  # apart from its number: a sign only where there is nothing to subtract from
        return left.rstrip(" \u00a0").endswith(("=", "≈", ":", "(", "[", "{"))
    return re.search(r"""[\dA-Za-z_)\]}%°'"”’…-]$""", left) is None
