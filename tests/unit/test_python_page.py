"""What is promised to other people's Python is exported, and the page shows the script that a test runs."""

import importlib
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "python.md").read_text(encoding="utf-8")


def test_public_names_are_those_of_the_page() -> None:
    rows = re.findall(r"^\| `(tasks\.[\w.]+)` \| (.+?) \|", PAGE, re.MULTILINE)
    assert len(rows) == 4
    for module, names in rows:
        exported = importlib.import_module(module).__all__
        assert sorted(exported) == sorted(re.findall(r"`(\w+)`", names)), module


def test_the_script_takes_public_names_alone() -> None:
    script = (DOCS / "examples" / "own_loop.py").read_text(encoding="utf-8")
    ours = re.findall(r"^from ((?:flows|tasks|infra)[\w.]*) import (.+)$", script, re.MULTILINE)
    assert ours
    for module, names in ours:
        assert set(names.split(", ")) <= set(importlib.import_module(module).__all__), module


def test_the_page_shows_the_script() -> None:
    assert f"```python\n{(DOCS / 'examples' / 'own_loop.py').read_text(encoding='utf-8')}```" in PAGE
