"""Runs the command line as a person does, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.processes import named, of_home
from tests.support.processes import words as command_line

LIMIT_S = 360  # for a whole run beside a busy neighbour
SMALL = [
    "--sft.max-steps=20",
    "--kd.max-steps=20",
    "--evaluation.max-rows=24",
    "--augmentation.expansions-per-seed=1",
    "--augmentation.max-rows=200",
    "--run.processes=1",
]


def start(*words: str, **environment: str) -> subprocess.Popen[str]:
    """`distilflow WORDS`, started."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.commands.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`distilflow WORDS`, to its end."""
    process = start(*words, **environment)
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        process.kill()
        said = process.communicate()[0].splitlines()
        raise AssertionError(f"`distilflow {' '.join(words)}` did not end in {LIMIT_S} s; last: {said[-3:]}") from error
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C; what it printed on the way out."""
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=90)
    return err


def results(home: Path) -> dict[str, Any]:
    """What the last run left for machines."""
    read: dict[str, Any] = json.loads((home / "latest" / "results.json").read_text())
    return read


def engines() -> list[str]:
    """Command lines of this session's runs and engines, orphans included."""
    found = named(
        of_home(os.environ["DISTILFLOW_HOME"]), "tasks.", "EngineCore", "llm_server", "deepspeed", "flows.commands.main"
    )
    return [command_line(process) for process in found]
