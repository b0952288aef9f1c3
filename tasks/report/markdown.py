"""Tables and blocks of text as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.text.markup import markdown_text


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first column is words and whose others are figures."""
    return [
        "| " + " | ".join(map(markdown_text, columns)) + " |",
        "|" + "|".join([" --- ", *[" ---: "] * (len(columns) - 1)]) + "|",
        *("| " + " | ".join(map(markdown_text, row)) + " |" for row in rows),
    ]


def indented(text: str) -> list[str]:
    """A text as a code block, whatever is in it."""
    return [f"    {line}" for line in text.splitlines()]
