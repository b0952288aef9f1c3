"""Which language a text is in: decides which model an agent uses, and whether a rewriting kept the language."""

from __future__ import annotations

import functools
import re
from typing import Any

from tasks.text.answers import without_fences

_SURE = 0.5  # probability from which a guess counts; below it stand short texts, formulas and code
_SURE_OF_A_CHANGE = 0.8
_FEWEST_LETTERS = 20
_FEWEST_SIGNS = 6  # of Chinese, Japanese, Korean
_GUESS = 0.2
_SAME = {"yue": "zh"}
_LONGEST = 2_000
_SIGN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_QUOTED = re.compile(
    r"\"[^\"]*\"|“[^”]*”|„[^“”]*[“”]|«[^»]*»|»[^«]*«|「[^」]*」|『[^』]*』|《[^》]*》|‘[^’]*’|(?<!\w)'[^'\n]+'(?!\w)|`[^`]*`"
    r"|https?://\S+|<[^<>]*>"
)
_COLON = re.compile(r"：|:\s")
# Tasks about languages, in which the language of a text is the matter and not the manner.
_ABOUT_LANGUAGES = re.compile(
    r"translat|traduc|traduz|tradui|übersetz|übertrag|vertaal|перев[её]д|перевод|переклад|çevir|tłumacz|přelož|ترجم|अनुवाद"
    r"|翻[译譯訳]|译[成为]|번역|dịch|\b(?:english|french|german|spanish|italian|portuguese|dutch|russian|chinese|mandarin"
    r"|cantonese|japanese|korean|arabic|hindi|turkish|polish|swedish|latin|greek|hebrew|ukrainian|vietnamese)\b"
    r"|\b(?:englisch|deutsch|französisch|spanisch|italienisch|russisch|chinesisch|japanisch)\w*"
    r"|\b(?:anglais|français|allemand|espagnol|italien|chinois)e?s?\b|\b(?:inglés|francés|alemán|español|chino)\b"
    r"|\b(?:inglese|francese|tedesco|spagnolo)\b|\b(?:английск|немецк|французск|русск|китайск)\w*|[英中德法俄日韩汉漢]\s?[文语語]"
    r"|西班牙语|葡萄牙语|영어|한국어|中国語|フランス語|ドイツ語",
    re.IGNORECASE,
)


def language_of(text: str, default: str = "en") -> str:
    """The likeliest language; `default` where there is nothing to go by."""
    code, probability = _classify(text)
    return code if probability >= _GUESS else default


def language_change(before: str, after: str) -> str | None:
    """From which language to which, in words; None where it is the same, or where that is not sure.

    Only a text's own words count, not what it quotes; tasks about languages are never sure.
    """
    if any(_ABOUT_LANGUAGES.search(text[:_LONGEST]) for text in (before, after)):
        return None
    one, other = _of_own_words(before), _of_own_words(after)
    return f"from {one} to {other}" if one and other and one != other else None


def _of_own_words(text: str) -> str | None:
    """The language of a text without its quotations, code and material, where all of it is surely in that one."""
    words = _QUOTED.sub(" ", without_fences(text[:_LONGEST]))
    words = _COLON.split(words, maxsplit=1)[0]  # what follows one is material
    if not _is_long_enough(words):
        return None
    code, probability = _classify(words)
    if probability < _SURE_OF_A_CHANGE:
        return None
    halves = words[: len(words) // 2], words[len(words) // 2 :]
    is_mixed = any(part != code and sure >= _SURE for part, sure in map(_classify, halves))
    return None if is_mixed else code


def _is_long_enough(words: str) -> bool:
    return sum(map(str.isalpha, words)) >= _FEWEST_LETTERS or len(_SIGN.findall(words)) >= _FEWEST_SIGNS


def is_language(code: str) -> bool:
    """Whether `language_of` could have said it."""
    return _SAME.get(code, code) == code and code in _identifier().nb_classes


def _classify(text: str) -> tuple[str, float]:
    code, probability = _identifier().classify(text[:_LONGEST])
    return _SAME.get(code, code), float(probability)


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
