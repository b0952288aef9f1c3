"""Rows as token ids: the one place where the chat template meets the tokenizer.

SFT, the teacher's scoring, KD and evaluation all use it, and its digest is part of their fingerprints: a
template that differs by a newline between scoring and training ruins distillation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.artifacts import digest_of
from infra.errors import ConfigurationError
from infra.models import ModelSource
from tasks.rows import Row


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


def tokenise(row: Row, tokenizer: Any, max_length: int) -> TokenisedRow | Skipped:
    """Render one row with the tokenizer's chat template; loss and scores concern the response only.

    Prompt and response are tokenised apart, as in generation, where the model continues the prompt's ids.
    Nothing is truncated: a row that is too long is skipped and counted. Text that contains the tokenizer's
    own control tokens (rows are hostile until checked) is skipped too.
    """
    if any(token in message.content for message in row.messages for token in tokenizer.all_special_tokens):
        return Skipped(row.id, "contains a control token of the chat template")
    prompt_text, text = prompt_and_text(row, tokenizer)
    prompt_ids = tokenizer.encode(prompt_text, add_special_tokens=False)
    response_ids = tokenizer.encode(text[len(prompt_text) :], add_special_tokens=False)
    if tokenizer.eos_token_id in response_ids:
        response_ids = response_ids[: response_ids.index(tokenizer.eos_token_id) + 1]
    else:
        response_ids.append(tokenizer.eos_token_id)
    if len(prompt_ids) + len(response_ids) > max_length:
        return Skipped(row.id, f"longer than {max_length} tokens")
    return TokenisedRow(row.id, prompt_ids + response_ids, len(prompt_ids))


def prompt_and_text(row: Row, tokenizer: Any) -> tuple[str, str]:
    """The rendered prompt, and the rendered prompt with its response."""
    prompt = [message.model_dump() for message in row.prompt]
    prompt_text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template([m.model_dump() for m in row.messages], tokenize=False)
    if not text.startswith(prompt_text):
        raise ConfigurationError(
            "the tokenizer's chat template renders a prompt differently once the answer follows: "
            "use a template whose prompt is a prefix of the whole conversation"
        )
    return prompt_text, text


def tokenizer_digests(source: ModelSource) -> dict[str, str]:
    """Identities of a model's token→id map (with how text is cut), of its chat template and of its end of turn.

    Read from the tokenizer's files, so that comparing two models loads neither.
    """
    backend = json.loads(source.text_file("tokenizer.json") or "null")
    if backend is None:
        raise ConfigurationError(f"model {source.name!r} has no tokenizer.json (a fast tokenizer)")
    cut = {name: backend.get(name) for name in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    template = source.text_file("chat_template.jinja")
    if template is None:
        template = json.loads(source.text_file("tokenizer_config.json") or "{}").get("chat_template")
    if not template:
        raise ConfigurationError(f"model {source.name!r} has no chat template: add one to its tokenizer_config.json")
    parts = {"vocabulary": cut, "template": template, "end": end_token(source)}
    return {name: digest_of(part)[:32] for name, part in parts.items()}


def end_token(source: ModelSource) -> str:
    """The token that ends a turn: what closes every response."""
    token = json.loads(source.text_file("tokenizer_config.json") or "{}").get("eos_token")
    if not token:
        raise ConfigurationError(f"model {source.name!r} names no eos_token in its tokenizer_config.json")
    return str(token["content"] if isinstance(token, dict) else token)
