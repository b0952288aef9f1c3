"""Which language a text is in: decides which model an agent uses, and whether a rewriting kept the language."""

from __future__ import annotations

import functools
from typing import Any

_SURE = 0.5  # probability from which a guess counts; below it stand short texts, formulas and code
_GUESS = 0.2
_SAME = {"yue": "zh"}


def detect(text: str) -> str | None:
    """ISO 639 code of the text's language, or None where it is too short or mixed to be sure."""
    code, probability = _classify(text)
    return code if probability >= _SURE else None


def language_of(text: str, default: str = "en") -> str:
    """The likeliest language; `default` where there is nothing to go by."""
    code, probability = _classify(text)
    return code if probability >= _GUESS else default


def is_language(code: str) -> bool:
    """Whether `detect` could have said it."""
    return _SAME.get(code, code) == code and code in _identifier().nb_classes


def _classify(text: str) -> tuple[str, float]:
    code, probability = _identifier().classify(text[:2_000])
    return _SAME.get(code, code), float(probability)


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
