"""A user's mistake in a run's log: its sentence, once.

Prefect logs what fails a run at the task, at the flow and at its engine, each time with a traceback. That helps with
a defect of ours; it hides a sentence that says what to do.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict

from infra.errors import DistilflowError

LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")
_NAMES_ONE = re.compile(r"\b[A-Z]\w*(Error|Lost): ")


def tell_mistakes_once() -> None:
    """Let Prefect's loggers say each mistake once a run and without a traceback. Unexpected exceptions stay whole."""
    once = _MistakesOnce()
    for name in LOGGERS:
        logging.getLogger(name).addFilter(once)


class _MistakesOnce(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._told: defaultdict[str, set[str]] = defaultdict(set)  # by flow run

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record stays, which may have become the sentence alone."""
        run = str(getattr(record, "flow_run_id", ""))
        if _ends_with_ours(record):
            record.msg, record.args = record.msg.split("(")[0], ()  # its message is what the run shows anyway
        if record.levelno < logging.ERROR or (mistake := _mistake(record)) is None:
            return True
        sentence = str(mistake)
        if sentence in self._told[run]:
            return False
        self._told[run].add(sentence)
        record.msg, record.args, record.exc_info, record.exc_text = sentence, (), None, None
        return True


def _ends_with_ours(record: logging.LogRecord) -> bool:
    if not (isinstance(record.msg, str) and record.msg.startswith("Finished in state Failed(")):
        return False
    found = _NAMES_ONE.search(record.msg)
    return found is not None and found[0].removesuffix(": ") in _names(DistilflowError)


def _mistake(record: logging.LogRecord) -> BaseException | None:
    """The exception that the record is about, where its text is written for the user."""
    about = [*record.args] if isinstance(record.args, tuple) else []
    about += [record.exc_info[1]] if record.exc_info else []
    return next((error for error in about if isinstance(error, BaseException) and _is_mistake(error)), None)


def _is_mistake(error: BaseException) -> bool:
    refused = (type(error).__module__, type(error).__name__) == ("prefect.exceptions", "ParameterTypeError")
    return refused or isinstance(error, DistilflowError)


def _names(kind: type[DistilflowError]) -> set[str]:
    return {kind.__name__}.union(*(_names(one) for one in kind.__subclasses__()))
