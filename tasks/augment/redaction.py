"""Keeps provider keys out of every message that leaves a provider process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

_SECRET_NAME = re.compile(r"(_KEY|_TOKEN|_SECRET|_PASSWORD|_CREDENTIALS|_KEY_ID)$", re.IGNORECASE)
_KEY_SHAPE = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|hf|nvapi|r8)[-_][\w*.\-]{4,}"  # also as providers quote them, half in asterisks
    r"|\bAIza[\w*\-]{10,}|\bAKIA[A-Z0-9*]{8,}|(?<=Bearer )[^\s'\"]+"
)
_MARK = "[key]"
_LONGEST = 500


def redacted(message: str, keys: Iterable[str]) -> str:
    """The message in one line, without the given keys, the keys of the environment, and what looks like one."""
    secrets = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 8}
    for secret in sorted({*secrets, *filter(None, keys)} - {"none"}, key=len, reverse=True):
        message = message.replace(secret, _MARK)
    return " ".join(_KEY_SHAPE.sub(_MARK, message).split())[:_LONGEST]
