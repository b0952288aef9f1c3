"""IFEval: does an answer follow instructions that a program can check? (Zhou et al., arXiv 2311.07911)

The checkers are those of lm-eval (`lm_eval.tasks.ifeval`), Google's own code kept up to date, imported only here
and only when IFEval runs. They split sentences and words with NLTK's English Punkt data, which NLTK keeps in a
folder of its own (NLTK_DATA) and fetches once.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from infra.errors import ConfigurationError
from tasks.evaluate.benchmarks.questions import Conversation, Question

_PUNKT = "tokenizers/punkt_tab/english/"


@dataclass(frozen=True)
class Followed:
    """Which instructions of a prompt its answer follows, in order. Loose: also with first or last line or `*` gone."""

    item: str
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def check(conversations: Sequence[Conversation]) -> list[Followed]:
    """Each answer against its prompt's instructions.

    Raises ConfigurationError where lm-eval or Punkt is missing, and for an instruction that it does not know.
    """
    checkers = _checkers()
    known = checkers.instructions_registry.INSTRUCTION_DICT
    for conversation in conversations:
        for name, _ in conversation.question.instructions:
            if name not in known:
                raise ConfigurationError(
                    f"IFEval, prompt {conversation.question.id}: lm-eval knows no instruction {name!r}"
                )
    return [_followed(checkers, conversation) for conversation in conversations]


def preflight() -> None:
    """Raise ConfigurationError where IFEval could not run, before anything is generated for it."""
    _checkers()


def result(questions: Sequence[Question], followed: Sequence[Followed]) -> dict[str, Any]:
    """The four accuracies between 0 and 1, and the strict and loose ones of each instruction type."""
    numbers: dict[str, Any] = {"prompts": len(followed), "instructions": sum(len(one.strict) for one in followed)}
    by_type: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    names = {question.id: [name for name, _ in question.instructions] for question in questions}
    for one in followed:
        for name, strict, loose in zip(names[one.item], one.strict, one.loose, strict=True):
            by_type[name].append((strict, loose))
    return {
        **numbers,
        "prompt_strict": _share(all(one.strict) for one in followed),
        "prompt_loose": _share(all(one.loose) for one in followed),
        "instruction_strict": _share(value for one in followed for value in one.strict),
        "instruction_loose": _share(value for one in followed for value in one.loose),
        "by_type": {
            name: {"n": len(pairs), "strict": _share(s for s, _ in pairs), "loose": _share(lo for _, lo in pairs)}
            for name, pairs in sorted(by_type.items())
        },
    }


def _followed(checkers: Any, conversation: Conversation) -> Followed:
    question, answer = conversation.question, conversation.answers[0]
    given = checkers.InputExample(
        key=question.id,
        instruction_id_list=[name for name, _ in question.instructions],
        prompt=question.turns[0],
        kwargs=[arguments for _, arguments in question.instructions],
    )
    strict = checkers.test_instruction_following_strict(given, answer).follow_instruction_list
    loose = checkers.test_instruction_following_loose(given, answer).follow_instruction_list
    return Followed(question.id, tuple(map(bool, strict)), tuple(map(bool, loose)))


def _checkers() -> Any:
    try:
        import langdetect
        import nltk
    except ImportError as error:
        raise _not_installed(error) from error
    if not _has_punkt(nltk):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            nltk.download("punkt_tab", quiet=True)
        if not _has_punkt(nltk):
            raise ConfigurationError(
                "IFEval needs NLTK's English Punkt data, which is not here and cannot be fetched: run "
                "`python -m nltk.downloader punkt_tab` where there is a network, and point NLTK_DATA at the folder"
            )
    langdetect.DetectorFactory.seed = 0  # it samples: the same text must get the same language
    try:
        from lm_eval.tasks.ifeval import utils
    except ImportError as error:
        raise _not_installed(error) from error
    return utils


def _has_punkt(nltk: Any) -> bool:
    with contextlib.suppress(LookupError):
        return bool(nltk.data.find(_PUNKT))
    return False


def _not_installed(error: ImportError) -> ConfigurationError:
    return ConfigurationError(
        f"IFEval needs lm-eval with its checkers, which is not installed ({error}): install the extra `eval`"
    )


def _share(values: Iterable[bool]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
