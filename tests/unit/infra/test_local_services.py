"""The file in which `up` notes what it started, as crashes and people may leave it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import psutil
import pytest

from infra.services.lock import exclusive
from infra.services.start import kept, read_state


def _us() -> dict[str, object]:
    """This process, as it is called by now."""
    return {"pid": os.getpid(), "command": psutil.Process().cmdline(), "ports": [4200]}


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "7", '"x"', "\x00\x00"),
        *('{"prefect": null}', '{"prefect": {}}', '{"prefect": {"pid": "1", "command": [], "ports": [1]}}'),
        *('{"prefect": {"pid": 1, "command": ["x"]}}', '{"prefect": {"pid": 1, "command": ["x"], "ports": []}}'),
        json.dumps({"another": {"pid": 1, "command": ["x"], "ports": [1]}}),
    ],
)
def test_a_damaged_note_of_services_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "services.json").write_text(text)
    assert kept(tmp_path) == {}


def test_a_note_that_is_no_text_is_none(tmp_path: Path) -> None:
    (tmp_path / "services.json").write_bytes(b"\xff\xfe{")
    assert read_state(tmp_path) == {}


def test_what_is_whole_in_a_damaged_note_is_used(tmp_path: Path) -> None:
    (tmp_path / "services.json").write_text(json.dumps({"prefect": _us(), "seaweedfs": 3}))
    [(name, (process, server))] = kept(tmp_path).items()
    assert (name, process.pid, server.ports) == ("prefect", os.getpid(), [4200])
    assert sys.executable in server.command


@pytest.mark.parametrize("line", ["{", "3", "[]", '{"pid": "x"}', '{"command": []}'])
def test_a_damaged_lock_holds_nobody_up(tmp_path: Path, line: str) -> None:
    (tmp_path / "services.lock").write_text(f"1\n{line}\n")
    with exclusive(tmp_path):
        assert (tmp_path / "services.lock").read_text() == f"{os.getpid()}\n"
