"""Rows as token ids: the one place where the chat template meets the tokenizer.

SFT, the teacher's scoring, KD and evaluation all use it, and its digest is part of their fingerprints: a
template that differs by a newline between scoring and training ruins distillation.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from infra.errors import ConfigurationError
from infra.store.artifacts import digest_of
from tasks.models import ModelSource
from tasks.rows import Message, Row, Turns
from tasks.text.answers import THOUGHT_MARKS
from tasks.tokens.chat import (
    TODAY,
    Turn,
    known_to,
    marks,
    template_of,
    turn,
    turn_of,
    vocabulary_digest,
    writes_the_date,
)
from tasks.tokens.spans import Span, Supervised
from tasks.tokens.tools import TOOL_USE, UNKNOWN, ToolForm, left_out, tool_form

SupervisedT = TypeVar("SupervisedT", bound=Supervised)


@dataclass(frozen=True)
class TokenisedRow(Supervised):
    """`ids` is prompt then response; the response (with its end-of-turn token) starts at `response_start`.

    `earlier` are the answers in the prompt that are supervised too, `unsupervised` how many of them could not be.
    """

    row_id: str
    ids: Sequence[int]
    response_start: int
    earlier: tuple[Span, ...] = ()
    unsupervised: int = 0


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be used, and why."""

    row_id: str
    reason: str


@dataclass(frozen=True)
class ChatFormat:
    """What a tokenizer knows of its chat template; `control` finds text that would speak as the template.

    `tool_template` is the one for rows with tools, and `tools` how it takes them (None: not at all).
    """

    turn: Turn
    end_id: int
    control: re.Pattern[str]
    prepends_space: bool
    tool_template: str
    tools: ToolForm | None

    @staticmethod
    @functools.lru_cache(maxsize=8)
    def of(tokenizer: Any) -> ChatFormat:
        added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
        named = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        template = tokenizer.get_chat_template()
        tool_template = tokenizer.get_chat_template(tools=[])
        found = turn(tokenizer.name_or_path, template, named, added)
        control = {token for token, special in added.items() if special or token in template + tool_template}
        control |= {*named.values(), *marks(template, named)}
        texts = sorted((token for token in control - THOUGHT_MARKS if token.strip()), key=len, reverse=True)
        first = tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=False))[0]
        return ChatFormat(
            found,
            tokenizer.convert_tokens_to_ids(found.end),
            re.compile("|".join(map(re.escape, texts)) or r"(?!)"),
            first.startswith(("▁", "Ġ")),
            tool_template,
            tool_form(tool_template, named),
        )


def tokenise(row: Row, tokenizer: Any, max_length: int, turns: Turns = "last") -> TokenisedRow | Skipped:
    """Render one row with the tokenizer's chat template; loss and scores concern its answers only.

    The response continues the prompt's ids, as in generation, and ends with what the template closes a turn with.
    Nothing is truncated: a row that is too long is skipped and counted. So is one that the template refuses, and
    text that contains control tokens (rows are hostile until checked).

    With `turns` "all", an answer before the response is supervised where the row begins with the very ids that the
    conversation up to that answer has as a row of its own. Templates that render earlier answers differently (Qwen3
    drops their thoughts) or close them with other tokens leave it unsupervised. An answer that calls tools is one as
    any other; what the tools answer never is. A template that does not know tools skips the rows that use some.
    """
    if row.uses_tools and ChatFormat.of(tokenizer).tools is None:
        return Skipped(row.id, UNKNOWN)
    if holds_control_tokens(row.messages, tokenizer, row.tools):
        return Skipped(row.id, "contains a control token of the chat template")
    try:
        ids, response_start = _rendered(row.messages, tokenizer, row.definitions)
    except ConfigurationError as error:
        return Skipped(row.id, str(error))
    whole = within(TokenisedRow(row.id, ids, response_start), max_length)
    if isinstance(whole, Skipped):
        return whole
    answers = row.earlier_answers if turns == "all" else []
    earlier = _earlier(row, answers, ids, response_start, tokenizer)
    return replace(whole, earlier=earlier, unsupervised=len(answers) - len(earlier))


def within(row: TokenisedRow, max_length: int) -> TokenisedRow | Skipped:
    """The row where it has no more tokens than that."""
    return row if len(row.ids) <= max_length else Skipped(row.row_id, f"longer than {max_length} tokens")


def holds_control_tokens(messages: Sequence[Message], tokenizer: Any, tools: str = "") -> bool:
    """Whether a message, or a definition of `tools`, could end its own turn, or begin another."""
    control = ChatFormat.of(tokenizer).control
    return any(control.search(text) for message in messages for text in message.texts) or bool(control.search(tools))


def _rendered(
    messages: Sequence[Message], tokenizer: Any, definitions: Sequence[dict[str, Any]]
) -> tuple[list[int], int]:
    """The ids of a conversation up to the end of its last answer, and where that begins; raises ConfigurationError."""
    chat = ChatFormat.of(tokenizer)
    prompt_text, text = prompt_and_text(messages, tokenizer, definitions)
    prompt_ids = tokenizer.encode(prompt_text, add_special_tokens=False)
    answer_ids = _continued(prompt_ids, prompt_text, text, tokenizer, chat)
    if chat.end_id in answer_ids:
        answer_ids = answer_ids[: answer_ids.index(chat.end_id) + 1]
    else:
        answer_ids.append(chat.end_id)
    return prompt_ids + answer_ids, len(prompt_ids)


def _earlier(
    row: Row, answers: Iterable[int], ids: Sequence[int], response_start: int, tokenizer: Any
) -> tuple[Span, ...]:
    """Those of the `answers` (places in the conversation) that stand in its `ids` as they would in the end."""
    messages, definitions = row.messages, row.definitions
    spans: list[Span] = []
    free = 1  # of any answer; the first token is predicted by nothing
    for place in answers:
        try:
            own, start = _rendered(messages[: place + 1], tokenizer, definitions)
        except ConfigurationError:
            continue
        if free <= start and len(own) <= response_start and ids[: len(own)] == own:
            spans.append(Span(place, start, free := len(own)))
    return tuple(spans)


def prompt_and_text(
    messages: Sequence[Message], tokenizer: Any, definitions: Sequence[dict[str, Any]] = ()
) -> tuple[str, str]:
    """The rendered conversation without its last answer, and with it; ConfigurationError where there are no such.

    `definitions` are those of the tools that may be called in it.
    """
    plain, template = [message.model_dump() for message in messages], tokenizer.get_chat_template()
    how: dict[str, Any] = {}
    if definitions or any(message.role == "tool" or message.tool_calls for message in messages):
        chat = ChatFormat.of(tokenizer)
        if chat.tools is None:
            raise ConfigurationError(f"the conversation {UNKNOWN}")
        plain = [chat.tools.plain(message) for message in messages]
        template = chat.tool_template
        how = {"tools": list(definitions) or None, "chat_template": template}
    how |= known_to(template)
    try:
        prompt_text = tokenizer.apply_chat_template(plain[:-1], tokenize=False, add_generation_prompt=True, **how)
        text = tokenizer.apply_chat_template(plain, tokenize=False, **how)
    except Exception as error:  # whatever a template raises, on purpose or not
        raise ConfigurationError(f"the chat template refuses it: {' '.join(str(error).split())[:100]}") from error
    if any(m.role == "system" and m.content.strip() not in prompt_text for m in messages[:-1]):
        raise ConfigurationError("the chat template leaves out its system message")
    if what := left_out(messages[:-1], prompt_text) or left_out(messages, text):
        raise ConfigurationError(f"the chat template leaves out {what}")
    if not text.startswith(prompt_text):
        raise ConfigurationError("the chat template renders its prompt differently once the answer follows")
    return prompt_text, text


def rendered_prompt(messages: Sequence[Message], tokenizer: Any) -> str:
    """What generation sees of a conversation that ends with a question; raises whatever its template does."""
    plain = [message.model_dump() for message in messages]
    known = known_to(tokenizer.get_chat_template())
    return str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True, **known))


def _continued(prompt_ids: list[int], prompt_text: str, text: str, tokenizer: Any, chat: ChatFormat) -> list[int]:
    """The response's ids. SentencePiece puts a space before what it encodes by itself: cut from the whole."""
    response = text[len(prompt_text) :]
    if not chat.prepends_space:
        return list(tokenizer.encode(response, add_special_tokens=False))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    if ids[: len(prompt_ids)] == prompt_ids:
        return ids[len(prompt_ids) :]
    # a token of the whole text reaches over the response's beginning, where generation has none
    line, ids = (tokenizer.encode(part, add_special_tokens=False) for part in ("\n", f"\n{response}"))
    return list(ids[len(line) :])


def tokenizer_digests(source: ModelSource) -> dict[str, str]:
    """Identities of a model's token→id map (with how text is cut), of its chat templates and of its end of turn.

    Read from the tokenizer's files, so that comparing two models loads neither.
    """
    templates = list(dict.fromkeys(template_of(source, name) for name in ("default", TOOL_USE)))  # mostly one
    backend = source.text_file("tokenizer.json")
    if backend is None:
        raise ConfigurationError(f"model {source.name!r} has no tokenizer.json (a fast tokenizer)")
    rendered_by = templates + [TODAY.isoformat()] * any(map(writes_the_date, templates))
    template = rendered_by if len(rendered_by) > 1 else rendered_by[0]
    rendering = {"template": template, "end": turn_of(source).end}
    return {"vocabulary": vocabulary_digest(backend)} | {name: digest_of(part)[:32] for name, part in rendering.items()}


def cut(rows: Iterable[SupervisedT], tokens_each: int) -> Iterator[list[SupervisedT]]:
    """Groups of neighbours with at most so many tokens, or of one longer row."""
    group: list[SupervisedT] = []
    tokens = 0
    for row in rows:
        tokens += len(row.ids)
        if group and tokens > tokens_each:
            yield group
            group, tokens = [], len(row.ids)
        group.append(row)
    if group:
        yield group
