"""From English back to a `Request`, by rule: every phrase template compiled to a regular expression.

This is how the demo LLM server understands what it is asked. `parse(phrase(request)) == request` holds for
every request of the domain; a text from outside the domain gives None.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from string import Formatter

from tasks.demo.requests import (
    ABOVE_WORDS,
    AGGREGATE_WORDS,
    ORDER_WORDS,
    TEMPLATES,
    TOP_WORDS,
    SqlRequest,
    families_of,
)
from tasks.demo.schemas import Column, Database, SqlTable, database_named

_POLITE = re.compile(r"^(?:please|could you)\s+", re.IGNORECASE)


def _meanings(words: Mapping[str, Iterable[str]]) -> dict[str, str]:
    return {word: meaning for meaning, ways in words.items() for word in ways}


_ABOVE, _AGGREGATE = _meanings(ABOVE_WORDS), _meanings(AGGREGATE_WORDS)
_ORDER, _TOP = _meanings(ORDER_WORDS), _meanings(TOP_WORDS)
_PATTERN_OF_SLOT = {"value": r"[A-Za-z]+", "low": r"\d{1,9}", "high": r"\d{1,9}", "limit": r"\d{1,9}"}
_SHARED_WORDS = {"above": _ABOVE, "aggregate": _AGGREGATE, "order": _ORDER, "top": _TOP}


@dataclass(frozen=True)
class _Rule:
    """One template of one family for one table, ready to match."""

    pattern: re.Pattern[str]
    family: str
    table: str
    categories: Mapping[str, str]
    numbers: Mapping[str, str]


def _column_words(columns: Iterable[Column]) -> dict[str, str]:
    return {word: column.name for column in columns for word in column.words}


def _any_of(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in words)


def _compile(template: str, family: str, database: Database, table: SqlTable) -> _Rule:
    parent = database.parent_of(table)
    filtered = parent if family == "join_filter" and parent else table
    categories = _column_words(filtered.columns_of("category"))
    numbers = _column_words(table.columns_of("number"))
    patterns = _PATTERN_OF_SLOT | {slot: _any_of(words) for slot, words in _SHARED_WORDS.items()}
    patterns |= {"label": _any_of(table.label.words), "table": _any_of(table.words), "number": _any_of(numbers)}
    patterns |= {"category": _any_of(categories), "parent_category": _any_of(categories)}
    if parent:
        patterns |= {"parent": _any_of([parent.singular]), "parent_label": _any_of([parent.label.name])}
    regex = ""
    for literal, slot, _, _ in Formatter().parse(template):
        regex += re.escape(literal)
        if slot:
            regex += f"(?P={slot})" if f"(?P<{slot}>" in regex else f"(?P<{slot}>{patterns[slot]})"
    return _Rule(re.compile(regex.removesuffix(r"\?"), re.IGNORECASE), family, table.name, categories, numbers)


@cache
def _rules(database_name: str) -> tuple[_Rule, ...]:
    database = database_named(database_name)
    return tuple(
        _compile(template, family, database, table)
        for table in database.tables
        for family in families_of(database, table)
        for template in TEMPLATES[family]
    )


def _request(rule: _Rule, match: re.Match[str]) -> SqlRequest:
    slots = {name: text.lower() for name, text in match.groupdict().items() if text}
    direction = _ORDER.get(slots.get("order", "")) or _TOP.get(slots.get("top", ""), "")
    return SqlRequest(
        family=rule.family,
        table=rule.table,
        number=rule.numbers.get(slots.get("number", ""), ""),
        category=rule.categories.get(slots.get("category", slots.get("parent_category", "")), ""),
        value=match.groupdict().get("value") or "",
        comparison=_ABOVE.get(slots.get("above", ""), ""),
        low=int(slots.get("low", 0)),
        high=int(slots.get("high", 0)),
        aggregate=_AGGREGATE.get(slots.get("aggregate", ""), ""),
        direction=direction,
        limit=int(slots.get("limit", 0)),
    )


@lru_cache(maxsize=4096)
def _parse(instruction: str, database_name: str) -> SqlRequest | None:
    text = _POLITE.sub("", instruction.strip()).rstrip(" .?!")
    for rule in _rules(database_name):
        match = rule.pattern.fullmatch(text)
        if match:
            return _request(rule, match)
    return None


def parse(instruction: str, database: Database) -> SqlRequest | None:
    """What the instruction asks of this database, or None if it is not a request of the demo domain."""
    return _parse(instruction, database.name)
