"""What the documents point at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/*.md"), *ROOT.glob("tasks/*/*.md")])
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
_PATH = re.compile(r"`((?:flows|tasks|infra|tests|docs)/[\w/.]*\w)`")


def test_there_are_documents() -> None:
    assert {"README.md", "SECURITY.md", "architecture.md", "FORMAT.md"} <= {path.name for path in DOCUMENTS}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_points_at_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    missing = [link for link in _LINK.findall(text) if not (document.parent / link).exists()]
    places = (ROOT, document.parent)
    missing += [path for path in _PATH.findall(text) if not any((place / path).exists() for place in places)]
    assert missing == []
