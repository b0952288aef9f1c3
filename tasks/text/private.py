"""Private data in texts, to be counted, masked or left out before anything goes to a provider.

E-mail addresses, telephone numbers, payment cards, API keys, IBANs and national ids. Precise rather than greedy: check
digits must hold (Luhn, mod 97, each country's own), a telephone number must be one that could be dialled and be written
as one, and what standards keep for examples (example.com, 555-01xx) is nobody's. Names and addresses of people are not
looked for.
"""

from __future__ import annotations

import bisect
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from stdnum import iban, luhn

from tasks.rows import Message, Row, ToolCall
from tasks.text import national_ids, telephone

Kind = Literal["email", "phone", "card", "key", "iban", "national id"]
Handling = Literal["keep", "count", "mask", "drop"]  # of rows with private data; `keep` does not look


class Found(NamedTuple):
    """Private data at `text[start:end]`."""

    kind: Kind
    start: int
    end: int


_DOMAINS = (  # any country's, and those in general use: `w@x.mean` is a product of matrices
    "com|org|net|edu|gov|mil|int|info|biz|name|pro|mobi|app|dev|cloud|online|shop|store|site|tech|email|xyz|club|blog|"
    "agency|company|digital|group|health|live|media|news|solutions|studio|systems|team|work|world|[a-z]{2}"
)
_EMAIL = re.compile(
    rf"(?<![\w.%+/-])[a-z0-9][\w.%+-]{{0,63}}@(?:[a-z0-9](?:[a-z0-9-]{{0,61}}[a-z0-9])?\.){{1,8}}(?:{_DOMAINS})"
    r"(?![\w(-]|\.\w|:[\w~/])",  # the last: git@github.com:owner/repository
    re.IGNORECASE | re.ASCII,
)
_NOBODYS = re.compile(r"@(?:.*\.)?(?:example\.\w+|example|test|invalid|localhost|local)$", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^\s/@]*:$")  # of an address with a user: what stands before the @ is no mailbox
_KEYS = {  # by what must be in the text for it to be worth looking
    "sk-": r"sk-(?:proj-|svcacct-|admin-|ant-|or-|lf-)?[\w-]{32,200}",
    "AKIA": r"AKIA[A-Z0-9]{16}",
    "ASIA": r"ASIA[A-Z0-9]{16}",
    "AIza": r"AIza[\w-]{35}",
    "gh": r"gh[pousr]_[A-Za-z0-9]{36,251}",
    "github_pat_": r"github_pat_\w{60,100}",
    "glpat-": r"glpat-[\w-]{20,60}",
    "xox": r"xox[abeprs]-[\w-]{20,250}",
    "hf_": r"hf_[A-Za-z0-9]{30,40}",
    "k_live_": r"[rsp]k_live_[A-Za-z0-9]{20,250}",
    "npm_": r"npm_[A-Za-z0-9]{36}",
    "pypi-": r"pypi-[\w-]{80,250}",
    "SG.": r"SG\.[\w-]{22}\.[\w-]{43}",
    "eyJ": r"eyJ[\w-]{15,2000}\.eyJ[\w-]{15,8000}\.[\w-]{20,2000}",
    "PRIVATE KEY-----": r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[^-]{40,10000}-----END [A-Z ]{0,20}PRIVATE KEY-----",
}
_KEY = {hint: re.compile(rf"(?<![\w-]){pattern}(?![\w-])", re.ASCII) for hint, pattern in _KEYS.items()}
_LEAST_DIFFERENT = 10  # characters: `sk-xxxxxxxx…` is no key
_LONG_NUMBER = re.compile(r"\d[\d ().\-/]{5,}\d")  # whatever is found by its digits has one in it
_CARD = re.compile(
    r"(?<![\w.,+*-])(?<!\w\()"
    r"(?:\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5}|\d{14,19})(?![\w*^-]|[.,]\d)",
    re.ASCII,
)
_ISSUERS = re.compile(  # Visa, Mastercard, American Express, Diners, Discover, JCB, UnionPay: first digits and lengths
    r"4(?:\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|6(?:011|4[4-9]\d|5\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_SEPARATORS = re.compile(r"[\s().\-/]")


def find(text: str) -> list[Found]:
    """What is private in a text, in order, nothing twice."""
    found: list[Found] = []
    if "@" in text:
        found += _emails(text)
    for hint, pattern in _KEY.items():
        if hint in text:
            found += _matches("key", pattern, text, lambda key: len(set(key)) >= _LEAST_DIFFERENT and _is_secret(key))
    if _LONG_NUMBER.search(text) or national_ids.LETTERED.search(text):
        found += _ibans(text)
        found += _matches("card", _CARD, text, _is_card)
        found += [Found("national id", start, end) for start, end in national_ids.find(text)]
        found += [Found("phone", start, end) for start, end in telephone.find(text)]
    return _apart(found) if len(found) > 1 else found


def masked(text: str) -> tuple[str, Counter[Kind]]:
    """The text with a mask for each that was found, equal values having equal masks; how many of each kind."""
    masks = _Masks()
    return masks.of(text), masks.counts


def private_in(row: Row) -> Counter[Kind]:
    """How much of each kind is in instruction, input, response and other turns, and in what tools are called with."""
    counts: Counter[Kind] = Counter()
    for text in _texts(row):
        for one in find(text):
            counts[one.kind] += 1
    return counts


def masked_row(row: Row) -> Row:
    """The row with masks, `[email]` for the first address in it, `[email 2]` for the second, wherever they stand."""
    if not any(map(find, _texts(row))):
        return row
    masks = _Masks()
    turns = {name: tuple(map(masks.of_turn, getattr(row, name))) for name in ("history", "tool_turns")}
    said = {name: masks.of(getattr(row, name)) for name in ("instruction", "input", "response")}
    calls = {"tool_calls": masks.of_calls(row.tool_calls), "tools": masks.of_json(row.tools)}
    return row.model_copy(update={**said, **turns, **calls})


def _texts(row: Row) -> Iterator[str]:
    turns = (*row.history, *row.tool_turns)
    calls = itertools.chain(row.tool_calls, *(turn.tool_calls for turn in turns))
    told = (text for call in calls for text in _leaves(json.loads(call.function.arguments)))
    own = (row.instruction, row.input, row.response)
    return itertools.chain((turn.content for turn in turns), own, told, _leaves(row.definitions))


def _leaves(value: Any) -> Iterator[str]:
    """The texts and numbers of a JSON value, as texts."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        yield from itertools.chain.from_iterable(map(_leaves, value))
    elif isinstance(value, str | int | float):
        yield str(value)


@dataclass
class _Masks:
    """The masks of one row: a value has the same one in all its texts, however it is written."""

    given: dict[tuple[Kind, str], str] = field(default_factory=dict)
    values: Counter[Kind] = field(default_factory=Counter)
    counts: Counter[Kind] = field(default_factory=Counter)

    def of(self, text: str) -> str:
        parts, end = [], 0
        for one in find(text):
            parts += [text[end : one.start], self._mask(one.kind, text[one.start : one.end])]
            end = one.end
            self.counts[one.kind] += 1
        return "".join([*parts, text[end:]])

    def of_turn(self, turn: Message) -> Message:
        return turn.model_copy(update={"content": self.of(turn.content), "tool_calls": self.of_calls(turn.tool_calls)})

    def of_calls(self, calls: Iterable[ToolCall]) -> tuple[ToolCall, ...]:
        functions = (
            call.function.model_copy(update={"arguments": self.of_json(call.function.arguments)}) for call in calls
        )
        return tuple(
            call.model_copy(update={"function": function}) for call, function in zip(calls, functions, strict=True)
        )

    def of_json(self, text: str) -> str:
        """JSON with masks in its texts, and in place of numbers."""
        return json.dumps(self._within(json.loads(text)), ensure_ascii=False) if text else ""

    def _within(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self.of(name): self._within(part) for name, part in value.items()}
        if isinstance(value, list):
            return list(map(self._within, value))
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return value
        masked = self.of(str(value))
        return masked if masked != str(value) else value

    def _mask(self, kind: Kind, value: str) -> str:
        if kind == "email":
            value = value.lower()
        elif kind != "key":
            value = _SEPARATORS.sub("", value)
        if (kind, value) not in self.given:
            self.values[kind] += 1
            number = self.values[kind]
            self.given[kind, value] = f"[{kind} {number}]" if number > 1 else f"[{kind}]"
        return self.given[kind, value]


def _apart(found: Iterable[Found]) -> list[Found]:
    """In order, without what overlaps with what was looked for before it."""
    kept: list[Found] = []
    for one in found:
        place = bisect.bisect(kept, one.start, key=lambda other: other.start)
        before, after = kept[place - 1 : place], kept[place : place + 1]
        if all(other.end <= one.start for other in before) and all(one.end <= other.start for other in after):
            kept.insert(place, one)
    return kept


def _matches(kind: Kind, pattern: re.Pattern[str], text: str, holds: Callable[[str], bool]) -> Iterator[Found]:
    for match in pattern.finditer(text):
        if holds(match[0]):
            yield Found(kind, *match.span())


def _emails(text: str) -> Iterator[Found]:
    for match in _EMAIL.finditer(text):
        if not _NOBODYS.search(match[0]) and not _PASSWORD.search(text, max(0, match.start() - 100), match.start()):
            yield Found("email", *match.span())


def _is_secret(key: str) -> bool:
    """Random: with letters and digits, and not said to be an example."""
    return any(map(str.isdigit, key)) and "EXAMPLE" not in key.upper()


def _is_card(number: str) -> bool:
    digits = _SEPARATORS.sub("", number)
    return bool(_ISSUERS.fullmatch(digits)) and luhn.is_valid(digits) and len(set(digits)) > 1


def _ibans(text: str) -> Iterator[Found]:
    for match in _IBAN.finditer(text):
        number = match[0]
        while number and not iban.is_valid(number):
            number = number.rpartition(" ")[0]  # a word in capitals may follow
        if number:
            yield Found("iban", match.start(), match.start() + len(number))
