"""Figures for people, and how long a text is for them."""

from __future__ import annotations

import re

import humanize

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]|\S+")


def size(count: float) -> str:
    """Bytes, as 1.5 GiB."""
    return humanize.naturalsize(count, binary=True, format="%.1f").replace(".0 ", " ").replace("Byte", "byte")


def amount(count: int) -> str:
    """A count to three digits: 1.23 M."""
    for unit, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= 0.9995 * unit:
            return f"{count / unit:.3g}{name}"
    return str(count)


def word_count(text: str) -> int:
    """Words; signs, where a language writes no spaces."""
    return sum(1 for _ in _WORD.finditer(text))
