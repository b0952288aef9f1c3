"""A tokenizer's tokens as the bytes of text that they stand for, read from its `tokenizer.json`.

Byte-level BPE (GPT-2, Qwen, Llama 3) writes bytes as printable characters; SentencePiece (Llama 2, Gemma)
writes a space as ▁ and may fall back to single bytes as <0x0A>. Only as bytes can two vocabularies be compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.errors import ConfigurationError
from tasks.tokens.chat import Turn

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id. `text` is None for control tokens and for ids without a token (padding of the embedding).

    `before` and `after` a response stands what the chat template writes there as text, `end` closes it. `fallback`
    are single bytes for what no token spells: <0x73> is no "s".
    """

    text: tuple[bytes | None, ...]
    control: Mapping[str, int]
    end: int
    before: bytes = b""
    after: bytes = b""
    fallback: frozenset[int] = frozenset()

    @staticmethod
    def of(tokenizer_json: str, turn: Turn) -> Vocabulary:
        """From `tokenizer.json` and what closes a turn; ConfigurationError for kinds that lose their spaces."""
        tokenizer = json.loads(tokenizer_json)
        model, kinds = tokenizer["model"], set(_kinds(tokenizer))
        if model["type"] == "WordPiece":
            raise ConfigurationError("WordPiece tokenizers do not keep spaces: their tokens cannot be aligned")
        entries = model["vocab"]
        tokens = dict(entries) if isinstance(entries, dict) else {token: i for i, (token, _score) in enumerate(entries)}
        added = {entry["content"]: entry for entry in tokenizer.get("added_tokens") or []}
        size = 1 + max([*tokens.values(), *(entry["id"] for entry in added.values())], default=-1)
        text: list[bytes | None] = [None] * size
        in_bytes = _characters() if "ByteLevel" in kinds else None
        for token, index in tokens.items():
            text[index] = _byte_level(token, in_bytes) if in_bytes else _sentence_piece(token)
        for token, entry in added.items():
            text[entry["id"]] = None if entry["special"] else token.encode()
        control = {token: entry["id"] for token, entry in added.items() if entry["special"]}
        end = control.get(turn.end, added.get(turn.end, {}).get("id", tokens.get(turn.end)))
        if end is None:
            raise ConfigurationError(f"the end-of-turn token {turn.end!r} is not in tokenizer.json")
        fallback = (
            frozenset() if in_bytes else frozenset(tokens[token] for token in tokens if _BYTE_TOKEN.fullmatch(token))
        )
        before, after = (_without(control, part).encode() for part in (turn.before, turn.after))
        return Vocabulary(tuple(text), control, end, before, after, fallback)

    def spans(self, ids: np.ndarray) -> tuple[np.ndarray, bytes]:
        """(R, 2) first and last byte of each token, and the text; control tokens have no length."""
        pieces = [self.text[index] or b"" for index in ids]
        ends = np.cumsum([0, *map(len, pieces)])
        return np.stack([ends[:-1], ends[1:]], axis=1), b"".join(pieces)

    def response_spans(self, ids: np.ndarray) -> tuple[np.ndarray, bytes]:
        """(R, 3) where tokens lie in the response itself, and their own lengths; its text, without the template's.

        Outer whitespace is no part of it. A token outside of it covers nothing, one that reaches out less than itself.
        """
        spans, text = self.spans(ids)
        start = len(self.before) if text.startswith(self.before) else 0
        stop = len(text) - (len(self.after) if text.endswith(self.after) else 0)
        start += len(text[start:stop]) - len(text[start:stop].lstrip())
        response = text[start:stop].rstrip()
        lengths = spans[:, 1:] - spans[:, :1]
        return np.concatenate([np.clip(spans - start, 0, len(response)), lengths], axis=1), response


def tokenizer_of(texts: Sequence[bytes], end: str) -> str:
    """A `tokenizer.json` of tokens known by their bytes alone, an id each in their order, then the token `end`.

    For `Vocabulary.of`: no text can be encoded by it.
    """
    character = {byte: character for character, byte in _characters().items()}
    vocabulary = {"".join(character[byte] for byte in text): number for number, text in enumerate(texts)}
    return json.dumps(
        {
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
            "pre_tokenizer": {"type": "ByteLevel"},
            "added_tokens": [{"id": len(texts), "content": end, "special": True}],
        }
    )


def token_map(teacher: Vocabulary, student: Vocabulary) -> np.ndarray:
    """For each teacher id the student's id of the same token, −1 where it has none.

    Text by its bytes, control tokens by their name, and end of turn to end of turn whatever its name.
    """
    kinds: tuple[dict[bytes, int], dict[bytes, int]] = {}, {}
    for index, text in reversed(list(enumerate(student.text))):
        if text is not None:
            kinds[index in student.fallback][text] = index

    def same(index: int, text: bytes | None) -> int:
        if text is None:
            return -1
        byte = index in teacher.fallback
        return kinds[byte].get(text, kinds[not byte].get(text, -1))

    mapped = np.array([same(*token) for token in enumerate(teacher.text)], dtype=np.int64)
    for name, index in teacher.control.items():
        mapped[index] = student.control.get(name, -1)
    mapped[teacher.end] = student.end
    return mapped


def _without(control: Iterable[str], text: str) -> str:
    """What is text of `text` (GPT-OSS opens an answer with control tokens and the word "final" between them)."""
    longest_first = sorted(control, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), "", text) if longest_first else text


def _kinds(tokenizer: Any) -> Iterator[str]:
    """The types of all pre-tokenizers and decoders."""
    for part in (tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")):
        for step in [part, *((part or {}).get("pretokenizers") or (part or {}).get("decoders") or [])]:
            if step:
                yield step["type"]


def _characters() -> dict[str, int]:
    """GPT-2's alphabet: the printable character that stands for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _byte_level(token: str, in_bytes: Mapping[str, int]) -> bytes | None:
    """None for a token with characters outside the alphabet: text never yields it."""
    if any(character not in in_bytes for character in token):
        return None
    return bytes(in_bytes[character] for character in token)


def _sentence_piece(token: str) -> bytes:
    if found := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(found[1], 16)])
    return token.replace("▁", " ").encode()
