"""What a task category is about, by its words: "barcode" is no code, and "biological" has nothing to do with logic."""

from __future__ import annotations

import re

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_CODE = {"code", "codes", "coder", "coding", "codegen", "program", "programs", "programming", "python"}
_MATHS = {"math", "maths", "mathematics", "mathematical", "mathqa", "arithmetic", "arithmetics", "arithmetical"}
_MATHS |= {"calculation", "calculations"}
_LOGIC = {"logic", "logical", "reason", "reasoning", "puzzle", "puzzles"}


def is_code(category: str) -> bool:
    """Whether answers are programs."""
    return not _CODE.isdisjoint(_words(category))


def is_python(category: str) -> bool:
    """Whether answers are programs in Python."""
    return "python" in _words(category)


def is_maths(category: str) -> bool:
    """Whether answers can be computed."""
    words = _words(category)
    return not _MATHS.isdisjoint(words) or {"word", "problem"} <= words or {"word", "problems"} <= words


def needs_steps(category: str) -> bool:
    """Whether an answer is better with a chain of thought: reasoning, mathematics and code (the paper, section 3.1)."""
    return is_code(category) or is_maths(category) or not _LOGIC.isdisjoint(_words(category))


def _words(category: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(category)}
