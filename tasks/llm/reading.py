"""Finds the one JSON object in a model's text: lenient about its form, strict about what could be injected.

Around the object may stand a thought before it, one code fence, and words around that fence; words in which another
brace stands may quote the row, so then there is no answer. No regular expression that could take quadratic time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import json_repair

from tasks.text.answers import answer_of

MAX_CHARS = 20_000
_FENCE = "```"
_LABELS = ("", "json", "jsonc", "json5", "jsonl")
_INVISIBLE = "\ufeff\u200b\u2060"  # a byte order mark, and what else some servers begin with
_ESCAPES = re.compile(r"\\[nrt]|[^\w{}\[\]:,]|_")
_FLAT_OBJECT = re.compile(r"\{[^{}]*\}")


class BadAnswer(ValueError):
    """The text is not the JSON object that the agent was asked for; says why."""


def object_in(text: str, *, mend: bool) -> tuple[Any, str]:
    """The JSON value in a model's text, and its own text; BadAnswer where there is none or more than one.

    With `mend`, slips of punctuation are repaired; an object that was cut off is not, for its last text would be half
    a text.
    """
    text = _unfenced(answer_of(text.strip().strip(_INVISIBLE), may_begin_within=False).strip())
    try:
        return json.loads(text, object_pairs_hook=_without_repeats), text
    except BadAnswer:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or a number of thousands of digits
        value = _repaired(text) if mend else None
        if value is None:
            raise BadAnswer("not one whole JSON object") from error
        return value, text


def quotes(value: Any, text: str, shown: str) -> bool:
    """Whether the object stands in the texts of the row that the model was shown, in whatever form.

    Spaces, quotation marks, escapes, the case and the order of fields do not count; a row's object may have more
    fields. `shown` is the user message, a JSON object.
    """
    own = [_bare(text), _bare(json.dumps(value, ensure_ascii=False))]
    fields = set(own[1][1:-1].split(","))
    for said in _texts(_loaded(shown)):
        if isinstance(value, dict) and "{" not in said:
            continue
        row = _bare(said)
        if any(one in row for one in own):
            return True
        if any(fields <= set(found[1:-1].split(",")) for found in _FLAT_OBJECT.findall(row)):
            return True
    return False


def _unfenced(text: str) -> str:
    """The inside of the outermost code fence, where only words without a brace stand around it."""
    before, opened, rest = text.partition(_FENCE)
    inside, closed, after = rest.rpartition(_FENCE)
    label, brace, _ = inside.partition("{")
    if not (opened and closed and brace) or label.strip("` \r\n\t").lower() not in _LABELS:
        return text
    if any(brace in words for brace in "{}" for words in (before, after)):
        return text
    return inside[len(label) :].strip("` \r\n\t")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadAnswer("a field occurs twice")
    return found


def _repaired(text: str) -> dict[str, Any] | None:
    """An object with slips of punctuation mended; None where it is not one whole object."""
    if not (text.startswith("{") and text.endswith("}") and len(text) < 10 * MAX_CHARS):
        return None
    try:
        value = json_repair.loads(text, skip_json_loads=True, strict=True)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not value:
        return None
    closing = "]" if isinstance([*value.values()][-1], list) else "\"'"
    return value if text[:-1].rstrip(" \t\r\n,")[-1:] in closing else None  # else the brace is one of an inner text


def _loaded(shown: str) -> Any:
    try:
        return json.loads(shown)
    except (ValueError, RecursionError):
        return shown


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _bare(text: str) -> str:
    """What of a JSON text is left where only its words and its structure count."""
    return _ESCAPES.sub("", text).lower()
