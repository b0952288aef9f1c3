"""What a failed run's log says: a mistake's sentence once and nothing else, a defect with its traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from flows.run_log import LOGGERS
from infra.errors import ConfigurationError


class _Kept(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


@pytest.fixture
def said() -> Iterator[list[logging.LogRecord]]:
    """What gets as far as the handlers of Prefect's loggers, one of which sends it to the server."""
    records: list[logging.LogRecord] = []
    handler = _Kept(records)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
    yield records
    for name in LOGGERS:
        logging.getLogger(name).removeHandler(handler)


def _fail(error: Exception, run: str) -> None:
    """As Prefect 3.7 logs a run whose task, flow and engine fail."""
    task, flow = (logging.getLogger(name) for name in ("prefect.task_runs", "prefect.flow_runs"))
    extra, kind = {"flow_run_id": run}, type(error).__name__
    try:
        raise error
    except type(error):
        task.error(f"Task run failed with exception: {error!r}", exc_info=True, extra=extra)
        task.error(f"Finished in state Failed('Task run encountered an exception {kind}: {error}')", extra=extra)
        flow.exception("Encountered exception during execution: %r", error, extra=extra)
        flow.error(f"Finished in state Failed('Flow run encountered an exception: {kind}: {error}')", extra=extra)
        flow.error("Engine execution exited with unexpected exception", exc_info=True, extra=extra)


def test_a_mistake_is_its_sentence_once_in_each_run(said: list[logging.LogRecord]) -> None:
    for run in ("one", "other"):
        _fail(ConfigurationError("seeds: there is no file 'x'"), run)
    assert [record.getMessage() for record in said] == [
        *("seeds: there is no file 'x'", "Finished in state Failed", "Finished in state Failed")
    ] * 2
    assert not [record for record in said if record.exc_info]


def test_a_defect_keeps_every_word(said: list[logging.LogRecord]) -> None:
    _fail(KeyError("x"), "one")
    assert len(said) == 5
    assert len([record for record in said if record.exc_info]) == 3
    assert "KeyError" in said[1].getMessage()
