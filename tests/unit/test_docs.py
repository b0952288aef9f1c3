"""What the documents point at is there, what is written by a program is up to date, and the site holds every page."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from docs.site import build, settings_page

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/**/*.md"))
DOCUMENTS = sorted([ROOT / "README.md", *PAGES, *ROOT.glob("tests/*.md"), *ROOT.glob("tasks/*/*.md")])
_LINK = re.compile(r"\]\((?!https?:)([^)\s]+)")
_PATH = re.compile(r"`((?:flows|tasks|infra|tests|docs)/[\w/.]*\w)`")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_VARIABLE = re.compile(r"\bDISTILFLOW_[A-Z0-9_]+[A-Z]\b")
_OWN = {"DISTILFLOW_CONSOLE", "DISTILFLOW_PROCESS_TREE"}  # set by us for our own processes


def test_there_are_documents() -> None:
    assert {"README.md", "SECURITY.md", "architecture.md", "FORMAT.md"} <= {path.name for path in DOCUMENTS}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_points_at_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    missing = [link for link in _LINK.findall(text) if not _leads_somewhere(document, link)]
    places = (ROOT, document.parent)
    named = [path for path in _PATH.findall(text) if "NAME" not in path]
    missing += [path for path in named if not any((place / path).exists() for place in places)]
    assert missing == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    page = ROOT / "docs" / "operations.md"
    assert _leads_somewhere(page, "server.md#your-own-servers")
    assert not _leads_somewhere(page, "server.md#nothing")
    assert not _leads_somewhere(page, "nothing.md")


def test_settings_are_as_the_page_tells_them() -> None:
    # in a process of its own: tests that give the command a flow's parameters change its help for those after them
    page = [sys.executable, "-c", "from docs.site import settings_page; print(settings_page.page(), end='')"]
    made = subprocess.run(page, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    assert settings_page.PAGE.read_text(encoding="utf-8") == made, "python -m docs.site.settings_page"


def test_every_variable_of_ours_is_told_and_read() -> None:
    code = "".join(
        path.read_text(encoding="utf-8") for name in ("flows", "tasks", "infra") for path in (ROOT / name).rglob("*.py")
    )
    read = set(_VARIABLE.findall(code)) - _OWN
    told = {name for name in settings_page.ENVIRONMENT if name.startswith("DISTILFLOW_")}
    assert told == read
    for document in DOCUMENTS:
        assert set(_VARIABLE.findall(document.read_text(encoding="utf-8"))) <= read, document


def test_the_site_holds_every_page_in_its_menu(tmp_path: Path) -> None:
    build.assemble(tmp_path)
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md")}
    menu = tomllib.loads((ROOT / "docs" / "site" / "zensical.toml").read_text())["project"]["nav"]
    assert sorted(_pages(menu)) == sorted(made)
    assert "](topk-format.md#why-so)" in (tmp_path / "what-did-not-work.md").read_text()


def test_a_link_that_leaves_the_site_is_refused() -> None:
    places = {"docs/data.md": "data.md", "README.md": "index.md"}
    assert build.linked("[home](../README.md), `[x](y.md)`", "docs/data.md", places) == "[home](index.md), `[x](y.md)`"
    with pytest.raises(ValueError, match=r"docs/data\.md links to \.\./Makefile, which is not on the site"):
        build.linked("[x](../Makefile)", "docs/data.md", places)


def _leads_somewhere(document: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = document.parent / path if path else document
    return target.exists() and (not anchor or anchor in _anchors(target))


def _anchors(document: Path) -> set[str]:
    """Of a page's headings, as GitHub and the site make them."""
    headings = _HEADING.findall(document.read_text(encoding="utf-8"))
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def _pages(menu: list[object]) -> Iterator[str]:
    for entry in menu:
        inner = list(entry.values()) if isinstance(entry, dict) else [entry]
        for value in inner:
            if isinstance(value, list):
                yield from _pages(value)
            else:
                yield str(value)


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_demos_models_are_as_large_as_is_said(page: str) -> None:
    said = re.findall(r"(\d\.\d)-million-parameter\s+(teacher|student)", (ROOT / page).read_text())
    assert {role for _millions, role in said} == {"teacher", "student"}
    for millions, role in said:
        with safe_open(ROOT / "tasks" / "demo" / "data" / role / "model.safetensors", "np") as weights:
            parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
        assert round(parameters / 1e6, 1) == float(millions)
