"""Text from outside, fit for a terminal and a log: no control character of it gets there. Standard library only."""

from __future__ import annotations

import re

# C0 but tab and line feed, C1, and what turns the reading direction around: it would hide or fake what is shown.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with a mark (U+FFFD) for every control character."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
