"""What contributors meet: hooks that run our own tools and fetch nothing, issue forms that GitHub takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MAKE_CHECK = ("ruff check", "ruff format --check", "mypy", "lint-imports")


def test_hooks_fetch_nothing_and_are_those_of_make_check() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    entries = [hook["entry"] for hook in repo["hooks"]]
    assert all(hook["language"] == "system" for hook in repo["hooks"])
    assert all(entry.startswith(".venv/bin/") for entry in entries)
    for tool in MAKE_CHECK:
        assert any(entry.startswith(f".venv/bin/{tool}") for entry in entries), tool


@pytest.mark.parametrize("form", ["bug.yaml", "idea.yaml", "config.yml"])
def test_an_issue_form_is_valid(form: str) -> None:
    checker = Path(sys.executable).parent / "check-jsonschema"
    schema = "vendor.github-issue-config" if form == "config.yml" else "vendor.github-issue-forms"
    command = [str(checker), "--builtin-schema", schema, str(ROOT / ".github" / "ISSUE_TEMPLATE" / form)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
