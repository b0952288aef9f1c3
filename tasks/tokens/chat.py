"""What a chat template writes around a response, and the token that closes it; from a model's files, no engine loaded.

`tokenizer.eos_token` is often another token: Gemma closes a turn with <end_of_turn> and ends a text with <eos>, so
do Phi-3, GLM-4, Llama 3 and base models with a chat template.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from infra.errors import ConfigurationError
from infra.store.artifacts import digest_of
from tasks.models import ModelSource

GENERATION = "generation_config.json"
TODAY = date(2024, 7, 26)
_QUESTION, _ANSWER = "Which?", "This."
_MARK = re.compile(r"\[/?[A-Z_]+\]|<{1,2}/?[^\s<>]{1,30}>{1,2}|#{2,} ?[^\n:]{1,30}:")
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class TemplateRefusal(ConfigurationError):
    """The template renders no such conversation."""


@dataclass(frozen=True)
class Turn:
    """`before` the response and `after` it stands template text; the token `end` closes it."""

    before: str
    after: str
    end: str


def known_to(template: str) -> dict[str, Any]:
    """What a template is told beside the conversation: where it writes today's date (Llama 3.2, Granite, GPT-OSS),
    one that stays the same, so that a row is the same tokens on every day of a run and of the next.

    The day is the one that Llama 3.2's template itself falls back to.
    """
    return {"strftime_now": TODAY.strftime} if writes_the_date(template) else {}


def writes_the_date(template: str) -> bool:
    """Whether a row would be other tokens tomorrow."""
    return "strftime_now" in template


def turn_of(source: ModelSource) -> Turn:
    """How the model's template renders a response; ConfigurationError where it has no template, or no use for it."""
    config = source.json_file("tokenizer_config.json")
    tokens = named_tokens(source, config)
    return turn(source.name, template_of(source), tokens, added_tokens(source).values())


def takes_system_turns(source: ModelSource) -> bool:
    """Whether the template renders a conversation that begins with a system message."""
    tokens = named_tokens(source, source.json_file("tokenizer_config.json"))
    messages = [{"role": "system", "content": _ANSWER}, {"role": "user", "content": _QUESTION}]
    try:
        return _ANSWER in render(template_of(source), messages, tokens)
    except TemplateRefusal:
        return False


def turn(name: str, template: str, tokens: Mapping[str, str], added: Collection[str]) -> Turn:
    """`tokens` are those that templates know by name, `added` all that are no ordinary text."""
    question, answer = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
    try:
        prompt, text = (render(template, messages, tokens) for messages in ([question], [question, answer]))
    except TemplateRefusal as error:
        raise ConfigurationError(f"the chat template of {name!r} renders no question and answer: {error}") from error
    if not text.startswith(prompt):
        raise ConfigurationError(
            f"the chat template of {name!r} renders a prompt differently once the answer follows: "
            "use a template whose prompt is a prefix of the whole conversation"
        )
    before, found, tail = text[len(prompt) :].partition(_ANSWER)
    if not found:
        raise ConfigurationError(f"the chat template of {name!r} does not render the answer: choose another template")
    places = {token: tail.find(token) for token in {*added, tokens.get("eos_token", "")} if token and token in tail}
    if places:
        end = min(places, key=lambda token: (places[token], -len(token)))
        return Turn(before, tail[: places[end]], end)
    if not tokens.get("eos_token"):
        raise ConfigurationError(
            f"nothing tells the end of an answer of {name!r}: its chat template closes it with no token, and its "
            "tokenizer_config.json names no eos_token"
        )
    return Turn(before, tail, tokens["eos_token"])


def marks(template: str, tokens: Mapping[str, str]) -> set[str]:
    """The template's own words that are markup and need be no tokens: Llama 2's [INST], Alpaca's "### Response:"."""
    question, answer = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
    text = ""
    for messages in ([question, answer, question], [{"role": "system", "content": _ANSWER}, question]):
        with contextlib.suppress(TemplateRefusal):
            text += render(template, messages, tokens)
    return set(_MARK.findall(text))


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, str],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The conversation as text; one that ends with a user's turn as the prompt that generation sees."""
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    asks = messages[-1]["role"] != "assistant"
    try:
        how: dict[str, Any] = {"chat_template": template, "add_generation_prompt": asks, "tools": tools}
        how |= {**tokens, **known_to(template)}
        rendered: Any = render_jinja_template([[dict(message) for message in messages]], **how)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise TemplateRefusal(f"{error}"[:200]) from error
    return str(rendered[0][0])


def template_of(source: ModelSource, name: str = "default") -> str:
    """The chat template that an answer is rendered with: the one of that name, or the one that there is."""
    template: Any = None
    if name != "default":
        template = source.text_file(f"additional_chat_templates/{name}.jinja")
    if template is None:
        template = source.text_file("chat_template.jinja")
    if template is None:
        template = source.json_file("tokenizer_config.json").get("chat_template")
    if template is None:
        template = source.json_file("chat_template.json").get("chat_template")
    if isinstance(template, list):  # several by name
        named = {one["name"]: one["template"] for one in template}
        template = named.get(name, named.get("default"))
    if not template:
        raise ConfigurationError(f"model {source.name!r} has no chat template: add one to its tokenizer_config.json")
    return str(template).removesuffix("\n")  # which Jinja leaves out anyway


def added_tokens(source: ModelSource) -> dict[int, str]:
    """Tokens beside the trained vocabulary, by id."""
    added = source.json_file("tokenizer.json").get("added_tokens") or []
    return {entry["id"]: entry["content"] for entry in added}


def stop_ids(source: ModelSource, end_id: int, eos_id: int | None) -> tuple[int, ...]:
    """Where generation ends: at what closes a turn, at the end of a text, and where the model's own settings say."""
    own = None
    for name in (GENERATION, "config.json"):
        own = own if own is not None else source.json_file(name).get("eos_token_id")
    theirs = own if isinstance(own, list) else [own]
    return tuple(dict.fromkeys(token for token in (end_id, eos_id, *theirs) if token is not None))


def stop_at(folder: Path, stops: Collection[int]) -> None:
    """Let whatever serves the model in `folder` end its answers at these ids, as its own settings may not say."""
    path = folder / GENERATION
    generation = json.loads(path.read_text()) if path.exists() else {}
    own = generation.get("eos_token_id")
    theirs = own if isinstance(own, list) else [own]
    if not set(stops) <= set(theirs):
        path.unlink(missing_ok=True)  # it may be a link into the model's own folder
        path.write_text(json.dumps({**generation, "eos_token_id": list(stops)}, indent=2) + "\n")


def named_tokens(source: ModelSource, config: Mapping[str, Any]) -> dict[str, str]:
    """From tokenizer_config.json, special_tokens_map.json or, by id, the model's own configuration."""
    tokens = dict(_strings(source.json_file("special_tokens_map.json"))) | dict(_strings(config))
    if "eos_token" not in tokens:
        for token in stop_ids(source, -1, None)[1:]:
            if token in (added := added_tokens(source)):
                return tokens | {"eos_token": added[token]}
    return tokens


def _strings(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in _NAMED:
        token = config.get(name)
        if token:
            yield name, str(token["content"] if isinstance(token, dict) else token)


@functools.lru_cache(maxsize=8)
def vocabulary_digest(tokenizer_json: str) -> str:
    """Of what decides how text is cut and numbered, written one way: files differ in age (merges as strings or pairs).

    Of 262,144 tokens it takes 6 seconds, and whoever asks where scores lie asks again and again.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = json.loads(Tokenizer.from_str(tokenizer_json).to_str())
    except Exception as error:  # of no other class
        raise ConfigurationError(f"tokenizer.json cannot be read: {error}"[:200]) from error
    parts = ("normalizer", "pre_tokenizer", "model", "added_tokens")
    return digest_of({name: tokenizer.get(name) for name in parts})[:32]
