"""A folder of ours that cannot be used is told in a sentence, whichever command meets it first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.program import ROOT


@pytest.mark.parametrize("words", [["status"], ["down"], ["run"]])
def test_a_file_in_the_place_of_the_home(tmp_path: Path, words: list[str]) -> None:
    home = tmp_path / "home"
    home.write_text("")
    assert _said(home, words) == f"distilflow: {home} cannot be used (File exists): " + ADVICE


def test_a_home_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = tmp_path / "file" / "home"
    assert _said(home, ["up"]) == f"distilflow: {home} cannot be used (Not a directory): " + ADVICE


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="a file system that nobody may write to")
def test_a_home_on_a_disk_that_is_read_only() -> None:
    said = _said(Path("/sys/kernel/distilflow"), ["worker", "cpu"])
    assert said.startswith("distilflow: /sys/kernel/distilflow cannot be used (")
    assert said.endswith(ADVICE)


def test_a_file_in_the_place_of_a_folder_in_the_home(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("")
    assert _said(tmp_path, ["up"]) == f"distilflow: {tmp_path / 'logs'} cannot be used (File exists): " + ADVICE


ADVICE = "point DISTILFLOW_HOME at a folder that you may write to (it is made where it is not there)\n"


def _said(home: Path, words: list[str]) -> str:
    env = {**os.environ, "DISTILFLOW_HOME": str(home)}
    for name in ("PREFECT_API_URL", "AWS_ENDPOINT_URL_S3"):
        env.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "flows.commands.main", *words], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 78, done.stdout + done.stderr
    assert done.stdout == ""
    return done.stderr
