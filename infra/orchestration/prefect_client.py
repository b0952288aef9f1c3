"""Prefect's client in this process, told which server to talk to.

One of the few files in `infra` that import Prefect.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings


def talking_to(environment: Any = os.environ) -> AbstractContextManager[object]:
    """Talk to the server that `environment` names: Prefect reads its settings once, when it is first imported."""
    chosen = {PREFECT_API_URL: environment["PREFECT_API_URL"]}
    if password := environment.get("PREFECT_API_AUTH_STRING"):
        chosen[PREFECT_API_AUTH_STRING] = password
    return temporary_settings(chosen)
