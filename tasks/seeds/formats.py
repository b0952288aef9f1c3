"""Rows of data files in the formats that people have, recognised by content and not by name.

Alpaca and Dolly (an instruction, its input, the answer), Self-Instruct (`instances`), TRL's `prompt` and `completion`,
conversations (`messages`, or ShareGPT's `conversations`), with tools or without, and logs of requests to LLMs, as JSON,
JSONL, CSV or Parquet.
A row that fits none raises one ConfigurationError that names file, row and field; one that is whole but cannot be used
is left out and counted, unless `strict` refuses it.
"""

from __future__ import annotations

import io
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from infra.errors import ConfigurationError
from tasks.rows import LAST_ALONE, Message, Row, ToolCall
from tasks.seeds import columns, files, logs, parquet, thoughts, tools, turns
from tasks.seeds.account import Account, LeftOutError
from tasks.seeds.columns import SourceRow
from tasks.seeds.settings import Reading
from tasks.text.categories import UNNAMED
from tasks.text.language import is_language, language_of

_ACCEPTED = (
    "Alpaca ('instruction', 'input', 'output'), Dolly ('instruction', 'context', 'response'), Self-Instruct "
    "('instruction', 'instances'), 'prompt' and 'completion', or chat rows ('messages' or 'conversations')"
)
_NAMES, _NAME_CHARS = 20, 40
_EMPTY = "has nothing in it"
_NO_INSTRUCTION = "has an empty instruction"
_RESULT_LAST = "ends with a tool's result that nothing answers"
_BETWEEN = ("tool_turns", "tool_calls")
_NOT_ASKED = "has no turn of a user before its answer"
_NO_RESPONSE = "has no response, and augmentation is off: add the response or switch augmentation on"
_NO_REFERENCE = "is held out for evaluation and has no response to compare answers with: add the response"


def parse(source: str, data: bytes, *, response_required: bool) -> list[Row]:
    """All rows of a small file that can be used. `source` is what errors call it."""
    stream = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]
    return list(read(source, stream, Account(), response_required=response_required))


def read(
    source: str,
    stream: BinaryIO,
    account: Account,
    *,
    response_required: bool,
    heldout: bool = False,
    how: Reading = Reading(),  # noqa: B008 (frozen)
) -> Iterator[Row]:
    """The rows of a data file that can be used, a few in memory at a time; `account` says what became of the others."""
    renamed, before = how.renamed, account.read
    known = columns.KNOWN.union(logs.COLUMNS, renamed)
    others: dict[str, int] = {}
    if files.beginning(source, stream).startswith(parquet.MAGIC) and stream.seekable():
        there = parquet.filled(source, stream)
        others = {name: count for name, count in there.items() if count and name not in known}
        account.note_unused(others)
        if {renamed.get(name, name) for name in there}.isdisjoint(
            (*columns.INSTRUCTION, *columns.TURNS, *logs.COLUMNS)
        ):
            columns.check_names(source, frozenset(there))
            raise _unknown(source, there)
    unseen = set(renamed)
    entries = files.entries(source, stream, known)
    for number, fields in entries:
        where = f"{source}, row {number}"
        if not isinstance(fields, dict):
            deque(entries, maxlen=0)  # what holds no objects may be no JSON at all, which is said first
            raise ConfigurationError(f"{where}: expected an object with fields, found {type(fields).__name__}")
        unused = Counter[str]()
        try:
            rows = _rows(where, _meant(fields, renamed, unseen, unused), others, unused, how.thoughts == "use")
        except LeftOutError as why:
            if how.strict:
                raise ConfigurationError(
                    f"{where}: {why}: mend it, or leave such rows out without data.strict"
                ) from why
            account.leave_out(str(why), f"row {number}", fields)
            continue
        account.note_unused(unused)
        for row in rows:
            if not row.is_answered and (response_required or heldout):
                missing = _NO_REFERENCE if heldout else _NO_RESPONSE
                raise ConfigurationError(f"{where}, field 'output': {missing}")
            account.read += 1
            yield thoughts.without_thoughts(row) if how.thoughts == "drop" else row
    if account.read == before:
        raise ConfigurationError(f"{source} holds no rows")
    if unseen:
        raise ConfigurationError(f"{source} has no column {sorted(unseen)[0]!r}, which data.columns names")


def _meant(
    fields: dict[str, Any], renamed: Mapping[str, str], unseen: set[str], unused: Counter[str]
) -> dict[str, Any]:
    """The fields by what they mean; a field of that name that is not meant is unused."""
    if not renamed:
        return fields
    unseen.difference_update(fields)
    meant = {renamed[name]: value for name, value in fields.items() if name in renamed}
    unused.update(name for name in fields if name in meant and name not in renamed)
    return {name: value for name, value in fields.items() if name not in renamed and name not in meant} | meant


def _rows(
    where: str, fields: dict[str, Any], others: Iterable[str], unused: Counter[str], with_thoughts: bool
) -> list[Row]:
    if logged := logs.conversation(fields):
        return _rows(where, logged, (), Counter(), with_thoughts)
    if with_thoughts:
        fields = thoughts.put_before_answers(fields)
    columns.check_names(where, frozenset([*fields, *others]))
    entry = SourceRow(where, fields)
    if not entry:
        raise LeftOutError(_EMPTY)
    if turns.is_zero(weight := entry.peek("weight")):
        raise LeftOutError(turns.NOT_TRAINED_ON)
    if weight == 1:
        entry.use("weight")
    if fields.get("instances") is not None:
        rows = _from_self_instruct(entry, fields["instances"], unused)
    elif field := entry.first(columns.TURNS):
        rows = [_from_both(entry, fields, field, unused)]
    elif isinstance(entry.peek("prompt"), list) and not entry.first(("instruction",)):
        rows = [_from_turns(entry, "prompt", [*entry.use("prompt"), *_completion(entry)], unused)]
    elif not fields.keys().isdisjoint(columns.INSTRUCTION):
        rows = [_from_instruction(entry, unused)]
    elif not fields.keys().isdisjoint(columns.TURNS):
        raise LeftOutError(_EMPTY)
    else:
        raise _unknown(where, fields)
    unused.update(entry.unused())
    return rows


def _completion(entry: SourceRow) -> list[Any]:
    """The turns that TRL's conversational prompt is completed by."""
    answer = _answer(entry)
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    return answer if isinstance(answer, list) else []


def _unknown(where: str, fields: dict[str, Any]) -> ConfigurationError:
    lists = [name for name, value in fields.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if lists:
        where_rows = " and ".join(map(repr, lists))
        return ConfigurationError(f"{where}: is one object with rows in its field {where_rows}: save such a list alone")
    names = ", ".join(" ".join(name.split())[:_NAME_CHARS] for name in sorted(fields)[:_NAMES]) or "none"
    return ConfigurationError(f"{where}: fields {names} are none of the known formats: {_ACCEPTED}")


def _from_instruction(entry: SourceRow, unused: Counter[str]) -> Row:
    history = _system(entry)
    if earlier := entry.use("history"):
        history += turns.history_of(entry.where, earlier, unused)
    instruction = entry.use(*columns.INSTRUCTION)
    return _row(entry, entry.where, instruction, _context(entry), _answer(entry), history)


def _system(entry: SourceRow) -> list[Message]:
    text = _text(entry.where, "system", entry.use_only(*columns.SYSTEM))
    return [Message(role="system", content=text)] if text else []


def _context(entry: SourceRow) -> Any:
    return entry.use_only(*columns.INPUT)


def _answer(entry: SourceRow) -> Any:
    return entry.use_only(*columns.OUTPUT)


def _from_self_instruct(entry: SourceRow, instances: Any, unused: Counter[str]) -> list[Row]:
    if not isinstance(instances, list) or not instances:
        raise ConfigurationError(f"{entry.where}, field 'instances': expected a non-empty list")
    entry.use("instances")
    instruction, rows = entry.use(*columns.INSTRUCTION), []
    kind = "classification" if entry.use("is_classification") is True else None
    for index, instance in enumerate(instances):
        here = f"{entry.where}, instance {index + 1}"
        if not isinstance(instance, dict):
            raise ConfigurationError(f"{here}: expected an object with 'input' and 'output'")
        columns.check_names(here, columns.KNOWN.difference(columns.INPUT, columns.OUTPUT).union(instance))
        part = SourceRow(here, instance)
        own = part.use("instruction") or instruction
        rows.append(_row(entry, here, own, _context(part), _answer(part), [], kind))
        unused.update(f"instances.{name}" for name in part.unused())
    return rows


def _from_both(entry: SourceRow, fields: dict[str, Any], field: str, unused: Counter[str]) -> Row:
    """The row of a conversation; where the instruction's own fields say the same, as our Parquet does, then theirs."""
    row = _from_turns(entry, field, fields[field], unused)
    if entry.first(("instruction",)):
        apart = SourceRow(entry.where, {name: value for name, value in fields.items() if name != field})
        try:
            other = _from_instruction(apart, Counter())
        except LeftOutError:
            return row
        used = {name: getattr(row, name) for name in ("tools", *_BETWEEN)}
        if (other := other.model_copy(update=used)).messages == row.messages:
            entry.use_all(apart)
            for name in _BETWEEN:
                entry.use(name)
            return other.model_copy(update={"origin_seed": other.id})
    return row


def _from_turns(entry: SourceRow, field: str, given: Any, unused: Counter[str]) -> Row:
    entry.use(field)
    messages = turns.messages_of(entry.where, field, given, unused)
    answer = messages.pop() if messages[-1].role == "assistant" else None
    tool_turns: list[Message] = []
    while messages and messages[-1].role != "user":
        tool_turns.insert(0, messages.pop())
    if not messages or (tool_turns and tool_turns[-1].role != "tool"):
        raise LeftOutError(_NOT_ASKED)
    if tool_turns and not answer:
        raise LeftOutError(_RESULT_LAST)
    if all(message.role != "system" for message in messages):
        messages = [*_system(entry), *messages]
    instruction, context = messages.pop().content, entry.peek("input")
    if isinstance(context, str) and instruction.endswith(joined := f"\n\n{context}"):
        instruction = instruction.removesuffix(joined)
        entry.use("input")
    else:
        context = None
    response, calls = (answer.content, answer.tool_calls) if answer else ("", ())
    row = _row(entry, entry.where, instruction, context, response, messages, tool_turns=tool_turns, tool_calls=calls)
    if turns.are_for_training(given):
        return row
    return row.model_copy(update={"verdicts": {LAST_ALONE: "an earlier answer has weight 0"}})


def _row(
    entry: SourceRow,
    where: str,
    instruction: Any,
    context: Any,
    response: Any,
    history: list[Message],
    kind: str | None = None,
    tool_turns: Iterable[Message] = (),
    tool_calls: tuple[ToolCall, ...] = (),
) -> Row:
    instruction = _text(where, "instruction", instruction)
    if not instruction:
        raise LeftOutError(_NO_INSTRUCTION)
    language = entry.peek("language")
    if isinstance(language, str) and is_language(language):
        entry.use("language")
    else:
        language = language_of(instruction)
    row = Row(
        instruction=instruction,
        input=_text(where, "input", context),
        response=_text(where, "output", response),
        history=tuple(history),
        task_category=_name(where, "category", entry.use_only(*columns.CATEGORY)) or kind or UNNAMED,
        language=language,
        database=_name(where, "database", entry.use("database")),
        tools=tools.definitions_of(entry.use("tools", "functions")),
        tool_turns=tuple(tool_turns),
        tool_calls=tool_calls,
    )
    return row.model_copy(update={"origin_seed": row.id})


def _text(where: str, field: str, value: Any) -> str:
    """A text as it stands, for indentation means something in code; a blank one is none."""
    if columns.is_empty(value):
        return ""
    if not isinstance(value, str):
        raise ConfigurationError(f"{where}, field {field!r}: expected text, found {type(value).__name__}")
    return turns.whole_text(f"{where}, field {field!r}", value)


def _name(where: str, field: str, value: Any) -> str:
    """A text or number that names something."""
    is_number = isinstance(value, int | float) and not columns.is_empty(value)
    return _text(where, field, f"{value:g}" if is_number else value).strip()
