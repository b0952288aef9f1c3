"""The columns that data files of this trade have, and those that nobody knows: named, or a slip of the pen."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from infra.errors import ConfigurationError

INSTRUCTION = ("instruction", "prompt")
INPUT = ("input", "context")
OUTPUT = ("output", "response", "completion")
SYSTEM = ("system", "system_prompt")
TURNS = ("messages", "conversations")
CATEGORY = ("category", "task_category")
ROLES = (INSTRUCTION, INPUT, OUTPUT, SYSTEM, TURNS, CATEGORY)
ALONE = (
    "history",
    "instances",
    "is_classification",
    "database",
    "language",
    "tools",
    "functions",
    "weight",
    "tool_turns",
    "tool_calls",
)
RENAMED = {
    "instruction": "instruction",
    "input": "input",
    "response": "output",
    "output": "output",
    "system": "system",
    "history": "history",
    "messages": "messages",
    "category": "category",
    "language": "language",
    "database": "database",
}  # what a column may be named as, and the field that it then is
ROLE_NAMES = frozenset(name for role in ROLES for name in role)
KNOWN = ROLE_NAMES.union(ALONE)
_MISSED = tuple((name,) for name in ("history", "instances", "database"))  # worth a stop where they look misspelt
_NO_SLIPS = frozenset({"content", "contents"})  # near to "context"
_LONG = 11  # letters, from which two slips are one word still


class SourceRow:
    """One object of a file: hands out its fields by what they mean, and knows which were used."""

    def __init__(self, where: str, fields: Mapping[str, Any]):
        self.where = where
        self._fields = {name: value for name, value in fields.items() if not is_empty(value)}
        self._used: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._fields)

    def names(self) -> list[str]:
        return sorted(self._fields)

    def first(self, names: Iterable[str]) -> str | None:
        """Which of the fields is there."""
        return next((name for name in names if name in self._fields), None)

    def peek(self, name: str | None) -> Any:
        """A field; None where it is not there."""
        return self._fields.get(name) if name else None

    def use(self, *names: str) -> Any:
        """The first of the fields that is there; None where none is."""
        name = self.first(names)
        if name:
            self._used.add(name)
        return self.peek(name)

    def use_only(self, *names: str) -> Any:
        """The field that is there; ConfigurationError where two of them say different things."""
        there = [name for name in names if name in self._fields]
        if any(self._fields[name] != self._fields[there[0]] for name in there):
            differing = " and ".join(map(repr, there))
            raise ConfigurationError(f"{self.where}: the fields {differing} differ: keep the one that is meant")
        self._used.update(there)
        return self.peek(there[0]) if there else None

    def use_all(self, other: SourceRow) -> None:
        """What another reading of the same fields used."""
        self._used |= other._used

    def unused(self) -> set[str]:
        return self._fields.keys() - self._used


def is_empty(value: Any) -> bool:
    """Whether there is nothing: null, NaN (which pandas writes for null), a blank text, an empty list or object."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value or value in ([], {})


def check_names(where: str, names: frozenset[str]) -> None:
    """Raise ConfigurationError where a name looks like a slip for a field that the row lacks."""
    if slip := _slip(names):
        wrong, right = slip
        raise ConfigurationError(
            f"{where}: the field {wrong!r} looks like {right!r} misspelt: rename it, or leave it out"
        )


@functools.lru_cache(maxsize=1024)
def _slip(names: frozenset[str]) -> tuple[str, str] | None:
    missing = [name for role in (*ROLES, *_MISSED) if names.isdisjoint(role) for name in role]
    for name in sorted(names - KNOWN - _NO_SLIPS):
        plain = name.strip().lower().replace(" ", "_").replace("-", "_")
        for right in missing:
            if abs(len(plain) - len(right)) <= 2 and _slips(plain, right) <= (2 if len(right) >= _LONG else 1):
                return name, right
    return None


def _slips(one: str, other: str) -> int:
    """Letters left out, added, exchanged, or swapped with their neighbours: optimal string alignment."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, wanted in enumerate(other, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (letter != wanted)))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                row[-1] = min(row[-1], before[j - 2] + 1)
        before, last = last, row
    return last[-1]
