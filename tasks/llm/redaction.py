"""Keeps provider keys out of every message that leaves a provider process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

_SECRET_NAME = re.compile(
    r"(_?API_?KEY|_KEY|_TOKEN|_SECRET|_PASSWORD|_PASSWD|_CREDENTIALS|_KEY_ID|_PAT|_AUTH_STRING)$", re.IGNORECASE
)
_KEY_SHAPE = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|hf|nvapi|r8|glpat|xox[abeprs]|dop_v1|tgp_v1)[-_][\w*.\-]{4,}"  # also half in asterisks
    r"|\bgh[oprsu]_\w{10,}|\bgithub_pat_\w{10,}|\bABSK[\w*+/=]{10,}|\bbedrock-api-key-[\w*+/=]{4,}"
    r"|\bAIza[\w*\-]{10,}|\bA[KS]IA[A-Z0-9*]{8,}|\beyJ[\w\-]{10,}\.[\w.\-]+"  # the last: tokens of JSON
    r"|(?<=Bearer )[^\s'\"]+|(?<=Basic )[^\s'\"]{8,}|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
)
_MARK = "[key]"
_LONGEST = 500


def redacted(message: str, keys: Iterable[str]) -> str:
    """The message in one line, without the given keys, the keys of the environment, and what looks like one."""
    secrets = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 8}
    for secret in sorted({*secrets, *filter(None, keys)} - {"none"}, key=len, reverse=True):
        message = message.replace(secret, _MARK)
    return " ".join(_KEY_SHAPE.sub(_MARK, message).split())[:_LONGEST]
