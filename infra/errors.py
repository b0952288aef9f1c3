"""How a run can fail, and what each failure means for a retry.

A message is one sentence that says what is wrong, where, and what to do: it is what the user reads.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from infra.printable import printable


class DistilflowError(Exception):
    """Base of the errors whose message is written for the user: it goes to terminals, logs and pages."""

    exit_code = 1

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


class ConfigurationError(DistilflowError):
    """The user has to change something; a retry would fail again."""

    exit_code = 78  # EX_CONFIG


class TransientError(DistilflowError):
    """Something outside failed for now (network, a killed process); a retry resumes."""

    exit_code = 75  # EX_TEMPFAIL


class OutOfMemoryError(DistilflowError):
    """A device or the machine ran out of memory; a blind retry would run out again."""

    exit_code = 71  # EX_OSERR


class UsageError(DistilflowError):
    """A flag or parameter has a value that it cannot have."""

    exit_code = 2


class StageFailedError(DistilflowError):
    """A stage failed elsewhere, after all the tries that could help."""


class SomeFailedError(DistilflowError):
    """Of several independent pieces of work some failed; the others are done."""


BY_EXIT_CODE = {e.exit_code: e for e in (ConfigurationError, TransientError, OutOfMemoryError)}


def is_retryable(error: BaseException) -> bool:
    """Whether running the same stage again can help."""
    return not isinstance(error, ConfigurationError | OutOfMemoryError | StageFailedError)


def unusable_home(home: Path, error: OSError) -> ConfigurationError:
    """The error to raise where our own folder cannot be written."""
    return ConfigurationError(
        f"{home} cannot be used ({error.strerror or error}): "
        "point DISTILFLOW_HOME at a folder that you may write to (it is made where it is not there)"
    )


def disk_full(where: Path | str) -> ConfigurationError:
    """The error to raise where a disk that we write to is full."""
    return ConfigurationError(
        f"the disk that holds {where} is full: free some space (or point DISTILFLOW_HOME at another disk) "
        "and run again; what is finished is kept"
    )


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def in_one_sentence(problems: Sequence[str]) -> str:
    """All that is to be changed, numbered where it is more than one thing."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems: " + "; ".join(f"({n}) {text}" for n, text in enumerate(problems, start=1))
