"""A stage in a program of its own, which tests kill: what it is given is JSON, and so is the line that it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def start(module: str, given: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
    """`python -m MODULE GIVEN`, with more in its environment."""
    return subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(given)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process that ended well has printed."""
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found
