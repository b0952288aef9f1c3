"""Telephone numbers that could be dialled and are written as such (Google's libphonenumber, by `phonenumbers`).

With + and a country code, or as people write them within their country: with an area code in brackets, a leading 0 and
groups, or groups by hyphens. A number without + is tried in some countries, and must have that country's groups.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from phonenumbers import Leniency, NumberParseException, PhoneNumberMatcher, is_valid_number, parse

_ABROAD = re.compile(r"(?<![\w+)\].])\+[1-9]\d{0,2}[ \-.(/]{0,2}\d[\d ().\-/]{4,18}\d(?![\w-]|\.\d)", re.ASCII)
_AMERICAN = re.compile(
    r"(?<![\w.,+/-])(?<!\w\()(?:\([2-9]\d\d\) ?[2-9]\d\d[-. ]|[2-9]\d\d([-.])[2-9]\d\d\1)\d{4}(?![\w/-]|[.,]\d)",
    re.ASCII,
)
_WITH_A_ZERO = re.compile(
    r"(?<![\w.,+/:-])(?<!\w\()"
    r"(?:(?:\(0\d{1,5}\)[ \-]?|0\d{1,5}[ \-/])\d[\d \-/]{4,14}\d|0\d{1,4}(?:\.\d{2,4}){2,4})(?![\w/:-]|[.,]\d)",
    re.ASCII,
)
_MOBILE_IN_CHINA = re.compile(r"(?<![\w.,+/-])(?<!\w\()1[3-9]\d([ -])\d{4}\1\d{4}(?![\w/-]|[.,]\d)", re.ASCII)
_DECIMAL = re.compile(r"\+\d+\.\d+")
_DIGITS_AT_HOME = range(9, 13)  # with the leading 0
_FICTION = re.compile(r"555\W{0,2}01\d\d$")  # kept for films and books
_COUNTRIES = (
    "GB",
    "DE",
    "FR",
    "IT",
    "NL",
    "BE",
    "CH",
    "AT",
    "SE",
    "FI",
    "AU",
    "NZ",
    "ZA",
    "JP",
    "KR",
    "CN",
    "IN",
    "TR",
)


def find(text: str) -> Iterator[tuple[int, int]]:
    """Where they stand."""
    if "+" in text:
        yield from _holding(_ABROAD, text, _could_be_dialled)
    yield from _holding(_AMERICAN, text, lambda number: not _FICTION.search(number) and _has_groups_of(number, "US"))
    yield from _holding(_MOBILE_IN_CHINA, text, lambda number: _has_groups_of(number, "CN"))
    yield from _holding(_WITH_A_ZERO, text, _has_groups_of_some_country)


def _holding(pattern: re.Pattern[str], text: str, holds: Callable[[str], bool]) -> Iterator[tuple[int, int]]:
    """Where the pattern's matches hold, without the last groups where it takes those of another number."""
    place = 0
    while match := pattern.search(text, place):
        number = match[0]
        while number and not holds(number):
            number = number.rpartition(" ")[0]
        if number:
            yield match.start(), match.start() + len(number)
        place = match.start() + len(number) if number else match.end()


def _has_groups_of_some_country(number: str) -> bool:
    digits = sum(map(str.isdigit, number))
    return digits in _DIGITS_AT_HOME and any(_has_groups_of(number, country) for country in _COUNTRIES)


def _could_be_dialled(number: str) -> bool:
    if _DECIMAL.fullmatch(number):
        return False
    try:
        return is_valid_number(parse(number)) and not (number.startswith("+1") and _FICTION.search(number))
    except NumberParseException:
        return False


def _has_groups_of(number: str, country: str) -> bool:
    try:
        if not is_valid_number(parse(number, country)):
            return False
    except NumberParseException:
        return False
    matched = next(iter(PhoneNumberMatcher(number, country, leniency=Leniency.STRICT_GROUPING)), None)
    return matched is not None and matched.raw_string == number
