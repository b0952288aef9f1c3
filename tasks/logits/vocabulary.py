"""A tokenizer's tokens as the bytes of text that they stand for, read from its `tokenizer.json`.

Byte-level BPE (GPT-2, Qwen, Llama 3) writes bytes as printable characters; SentencePiece (Llama 2, Gemma)
writes a space as ▁ and may fall back to single bytes as <0x0A>. Only as bytes can two vocabularies be compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.errors import ConfigurationError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id. `text` is None for control tokens and for ids without a token (padding of the embedding)."""

    text: tuple[bytes | None, ...]
    control: Mapping[str, int]
    end: int

    @staticmethod
    def of(tokenizer_json: str, end_token: str) -> Vocabulary:
        """From `tokenizer.json` and the end-of-turn token; ConfigurationError for kinds that lose their spaces."""
        told = json.loads(tokenizer_json)
        model, kinds = told["model"], set(_kinds(told))
        if model["type"] == "WordPiece":
            raise ConfigurationError("WordPiece tokenizers do not keep spaces: their tokens cannot be aligned")
        entries = model["vocab"]
        tokens = dict(entries) if isinstance(entries, dict) else {token: i for i, (token, _score) in enumerate(entries)}
        added = {entry["content"]: entry for entry in told.get("added_tokens") or []}
        size = 1 + max([*tokens.values(), *(entry["id"] for entry in added.values())], default=-1)
        text: list[bytes | None] = [None] * size
        in_bytes = _characters() if "ByteLevel" in kinds else None
        for token, index in tokens.items():
            text[index] = _byte_level(token, in_bytes) if in_bytes else _sentence_piece(token)
        for token, entry in added.items():
            text[entry["id"]] = None if entry["special"] else token.encode()
        control = {token: entry["id"] for token, entry in added.items() if entry["special"]}
        end = control.get(end_token, tokens.get(end_token))
        if end is None:
            raise ConfigurationError(f"the end-of-turn token {end_token!r} is not in tokenizer.json")
        return Vocabulary(tuple(text), control, end)

    def spans(self, ids: np.ndarray) -> tuple[np.ndarray, bytes]:
        """(R, 2) first and last byte of each token, and the text; control tokens have no length."""
        pieces = [self.text[index] or b"" for index in ids]
        ends = np.cumsum([0, *map(len, pieces)])
        return np.stack([ends[:-1], ends[1:]], axis=1), b"".join(pieces)


def token_map(teacher: Vocabulary, student: Vocabulary) -> np.ndarray:
    """For each teacher id the student's id of the same token, −1 where it has none.

    Text by its bytes, control tokens by their name, and end of turn to end of turn whatever its name.
    """
    ids = {text: index for index, text in reversed(list(enumerate(student.text))) if text is not None}
    mapped = np.array([-1 if text is None else ids.get(text, -1) for text in teacher.text], dtype=np.int64)
    for name, index in teacher.control.items():
        mapped[index] = student.control.get(name, -1)
    mapped[teacher.end] = student.end
    return mapped


def _kinds(told: Any) -> Iterator[str]:
    """The types of all pre-tokenizers and decoders."""
    for part in (told.get("pre_tokenizer"), told.get("decoder")):
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
