"""What is wrong with the flags of a command line, in sentences."""

from __future__ import annotations

import sys

from cyclopts import App, CycloptsError
from pydantic import ValidationError


def sentences(app: App, error: CycloptsError) -> list[str]:
    """Of this process's flags: cyclopts ends at the first that is wrong, so the others are read without it."""
    words, found = sys.argv[1:], [sentence(error)]
    while argument := getattr(error, "argument", None):
        others = _without(argument.name, words)
        if others == words:
            break
        try:
            app.parse_args(words := others, exit_on_error=False, print_error=False)
            break
        except CycloptsError as next_error:
            error = next_error
            found.append(sentence(error))
    return found


def _without(flag: str, words: list[str]) -> list[str]:
    """The command line without a flag, its values, and the nested flags below it."""
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = word.split("=")[0] == flag or word.startswith(f"{flag}.")
        if not dropping:
            kept.append(word)
    return kept


def sentence(error: CycloptsError) -> str:
    """What is wrong with a flag, and with the nested flags below it, on one line."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return " ".join(str(error).split())
    argument = getattr(error, "argument", None)
    problems = []
    for wrong in cause.errors(include_url=False):
        if wrong["type"] == "value_error":  # a rule between settings, which names them
            problems.append(str(wrong["ctx"]["error"]))
            continue
        flag = ".".join([argument.name if argument else "flags", *map(str, wrong["loc"])])
        given = "" if flag.endswith(".api_base") else f", not {wrong['input']!r}"  # it may hold a key
        problems.append(f"{flag}: {wrong['msg'][0].lower()}{wrong['msg'][1:]}{given}")
    return "; ".join(problems)
