"""Rows as token ids: the one place where the chat template meets the tokenizer.

SFT, the teacher's scoring, KD and evaluation all use it, and its digest is part of their fingerprints: a
template that differs by a newline between scoring and training ruins distillation.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from infra.errors import ConfigurationError
from infra.store.artifacts import digest_of
from tasks.models import ModelSource
from tasks.rows import Message, Row
from tasks.text.answers import THOUGHT_MARKS
from tasks.tokens.chat import Turn, canonical_tokenizer, marks, template_of, turn, turn_of


@dataclass(frozen=True)
class TokenisedRow:
    """`ids` is prompt then response; the response (with its end-of-turn token) starts at `response_start`."""

    row_id: str
    ids: Sequence[int]
    response_start: int

    @property
    def response_tokens(self) -> int:
        return len(self.ids) - self.response_start


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be used, and why."""

    row_id: str
    reason: str


@dataclass(frozen=True)
class ChatFormat:
    """What a tokenizer knows of its chat template; `control` finds text that would speak as the template."""

    turn: Turn
    end_id: int
    control: re.Pattern[str]
    prepends_space: bool

    @staticmethod
    @functools.lru_cache(maxsize=8)
    def of(tokenizer: Any) -> ChatFormat:
        added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
        named = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        template = tokenizer.get_chat_template()
        found = turn(tokenizer.name_or_path, template, named, added)
        control = {token for token, special in added.items() if special or token in template}
        control |= {*named.values(), *marks(template, named)}
        texts = sorted((token for token in control - THOUGHT_MARKS if token.strip()), key=len, reverse=True)
        first = tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=False))[0]
        return ChatFormat(
            found,
            tokenizer.convert_tokens_to_ids(found.end),
            re.compile("|".join(map(re.escape, texts)) or r"(?!)"),
            first.startswith(("▁", "Ġ")),
        )


def tokenise(row: Row, tokenizer: Any, max_length: int) -> TokenisedRow | Skipped:
    """Render one row with the tokenizer's chat template; loss and scores concern the response only.

    The response continues the prompt's ids, as in generation, and ends with what the template closes a turn with.
    Nothing is truncated: a row that is too long is skipped and counted. So is one that the template refuses, and
    text that contains control tokens (rows are hostile until checked).
    """
    chat = ChatFormat.of(tokenizer)
    if holds_control_tokens(row.messages, tokenizer):
        return Skipped(row.id, "contains a control token of the chat template")
    try:
        prompt_text, text = prompt_and_text(row, tokenizer)
    except ConfigurationError as error:
        return Skipped(row.id, str(error))
    prompt_ids = tokenizer.encode(prompt_text, add_special_tokens=False)
    response_ids = _continued(prompt_ids, prompt_text, text, tokenizer, chat)
    if chat.end_id in response_ids:
        response_ids = response_ids[: response_ids.index(chat.end_id) + 1]
    else:
        response_ids.append(chat.end_id)
    if len(prompt_ids) + len(response_ids) > max_length:
        return Skipped(row.id, f"longer than {max_length} tokens")
    return TokenisedRow(row.id, prompt_ids + response_ids, len(prompt_ids))


def holds_control_tokens(messages: Sequence[Message], tokenizer: Any) -> bool:
    """Whether a message could end its own turn, or begin another."""
    control = ChatFormat.of(tokenizer).control
    return any(control.search(message.content) for message in messages)


def prompt_and_text(row: Row, tokenizer: Any) -> tuple[str, str]:
    """The rendered prompt, and the rendered prompt with its response; ConfigurationError where there are no such."""
    prompt = [message.model_dump() for message in row.prompt]
    try:
        prompt_text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        text = tokenizer.apply_chat_template([m.model_dump() for m in row.messages], tokenize=False)
    except Exception as error:  # whatever a template raises, on purpose or not
        raise ConfigurationError(f"the chat template refuses it: {' '.join(str(error).split())[:100]}") from error
    if any(m.role == "system" and m.content.strip() not in prompt_text for m in row.prompt):
        raise ConfigurationError("the chat template leaves out its system message")
    if not text.startswith(prompt_text):
        raise ConfigurationError("the chat template renders its prompt differently once the answer follows")
    return prompt_text, text


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
    """Identities of a model's token→id map (with how text is cut), of its chat template and of its end of turn.

    Read from the tokenizer's files, so that comparing two models loads neither.
    """
    template, backend = template_of(source), source.text_file("tokenizer.json")
    if backend is None:
        raise ConfigurationError(f"model {source.name!r} has no tokenizer.json (a fast tokenizer)")
    parts = {"vocabulary": canonical_tokenizer(backend), "template": template, "end": turn_of(source).end}
    return {name: digest_of(part)[:32] for name, part in parts.items()}


def cut(rows: Iterable[TokenisedRow], tokens_each: int) -> Iterator[list[TokenisedRow]]:
    """Groups of neighbours with at most so many tokens, or of one longer row."""
    group: list[TokenisedRow] = []
    tokens = 0
    for row in rows:
        tokens += len(row.ids)
        if group and tokens > tokens_each:
            yield group
            group, tokens = [], len(row.ids)
        group.append(row)
    if group:
        yield group
