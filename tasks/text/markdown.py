"""Markdown: texts of users and models in which a text stays a text, tables, blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import escape


def markdown_text(text: str) -> str:
    """Text on one line that neither Markdown nor the HTML in it can take for markup."""
    line = str(escape(" ".join(text.split()))).replace("&#39;", "'")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", line)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first column is words and whose others are figures."""
    marks = [" --- ", *[" ---: "] * (len(columns) - 1)]
    return [_line(columns), f"|{'|'.join(marks)}|", *map(_line, rows)]


def indented(text: str) -> list[str]:
    """A text as a code block, whatever is in it."""
    return [f"    {line}" for line in text.splitlines()]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(markdown_text, cells))} |"
