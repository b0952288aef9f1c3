"""What became of the rows of a data file: every one is used, or left out for a reason that is counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DUPLICATE = "the same as another row"
OTHER_DATABASE = "the same as another row, for another database"
PRIVATE = "holds private data"
NOT_SAMPLED = "is not in the sample that data.max_seeds takes"


_NAMED = 200
_EXAMPLES, _EXAMPLE_CHARS = 20, 160
_TOLD, _TOLD_CHARS = 12, 40
_OTHERS = "(others)"


class LeftOutError(Exception):
    """A row that is whole but cannot be used; says why."""


@dataclass
class Account:
    """`read` rows = used ones + `left_out` ones, by reason, with an example of each where a row cannot be used.

    `unused` are columns, with how many rows have them; `private` what kinds of private data there were, likewise.
    """

    read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    private: Counter[str] = field(default_factory=Counter)

    def leave_out(self, reason: str, where: str, fields: Any) -> None:
        """A row that was read and cannot be used."""
        self.read += 1
        self.left_out[reason] += 1
        if reason not in self.examples and len(self.examples) < _EXAMPLES:
            self.examples[reason] = f"{where}: {json.dumps(fields, ensure_ascii=False, default=str)[:_EXAMPLE_CHARS]}"

    def note_unused(self, columns: Mapping[str, int]) -> None:
        """Columns and in how many more rows they are; of columns that are new in every row, only so many are named."""
        for name, rows in columns.items():
            is_named = name in self.unused or len(self.unused) < _NAMED
            self.unused[name if is_named else _OTHERS] += rows

    @property
    def used(self) -> int:
        return self.read - self.left_out.total()

    def plain(self) -> dict[str, Any]:
        """As JSON, in an order that does not depend on which row came first."""
        return {
            "read": self.read,
            "used": self.used,
            "left_out": dict(sorted(self.left_out.items())),
            "examples": dict(sorted(self.examples.items())),
            "unused": dict(sorted(self.unused.items())),
            "private": dict(sorted(self.private.items())),
        }


def private_data(facts: Mapping[str, Any]) -> dict[str, int]:
    """In how many rows of the files each kind of private data was, whatever was done with it."""
    found = Counter[str]()
    for file in facts.get("files", {}).values():
        found.update(file.get("private", {}))
    return dict(sorted(found.items()))


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """What people should know of the files of a seeds artifact (its record's facts): nothing where all was used."""
    found = []
    for name, file in facts.get("files", {}).items():
        if file["left_out"]:
            reasons = "; ".join(f"{count:,}: {reason}" for reason, count in file["left_out"].items())
            found.append(
                f"{name}: {sum(file['left_out'].values()):,} of {file['read']:,} rows are left out ({reasons})"
            )
            for reason, example in file.get("examples", {}).items():
                found.append(f"{name}: the first that {reason} is {' '.join(example.split())}")
        if others := file.get("others"):
            found.append(f"{name}: no data by their names, and not read: {some(others, _TOLD)}")
        if private := file.get("private"):
            kinds = [f"{kind} ({rows:,} rows)" for kind, rows in private.items()]
            done = {"mask": "masked", "drop": "left out"}.get(facts.get("handling", ""))
            advice = f"{done}" if done else "kept as it is; data.private=mask or drop keeps it from providers"
            found.append(f"{name}: private data, {advice}: {some(kinds, _TOLD)}")
        if file["unused"]:
            most = sorted(file["unused"].items(), key=lambda item: -item[1])
            columns = [f"{' '.join(column.split())[:_TOLD_CHARS]} ({rows:,} rows)" for column, rows in most]
            found.append(f"{name}: columns that are not used: {some(columns, _TOLD)}")
    return found


def some(names: Sequence[str], most: int) -> str:
    """The first of the names, and how many more there are."""
    others = f" and {len(names) - most:,} others" if len(names) > most else ""
    return ", ".join(names[:most]) + others
