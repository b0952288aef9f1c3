"""`make docs`: the documents of this repository as a site in build/docs/site, which needs nothing from elsewhere.

The README is its home. Pages are copied, and their links to documents that lie elsewhere in the repository lead to the
copies; a link to anything else that is not on the site, or an anchor that is not there, ends the build.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "docs"
ELSEWHERE = {"README.md": "index.md", "tasks/logits/FORMAT.md": "topk-format.md", "tests/README.md": "tests.md"}
_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.DOTALL | re.MULTILINE)


def documents() -> dict[str, str]:
    """Every document of the site by its path in the repository, and its path on the site."""
    pages = [path.relative_to(ROOT) for path in sorted((ROOT / "docs").rglob("*.md"))]
    examples = [path.relative_to(ROOT) for path in sorted((ROOT / "docs" / "examples").glob("*.py"))]
    return {str(path): str(path.relative_to("docs")) for path in (*pages, *examples)} | ELSEWHERE


def linked(text: str, path: str, places: Mapping[str, str]) -> str:
    """`text` of the document at `path` with its links as the site has them; ValueError for one that leaves the site."""

    def on_site(match: re.Match[str]) -> str:
        target = os.path.normpath(Path(path).parent / match[1])
        if target not in places:
            raise ValueError(f"{path} links to {match[1]}, which is not on the site")
        return os.path.relpath(places[target], Path(places[path]).parent)

    parts = _CODE.split(text)
    return "".join(part if n % 2 else _LINK.sub(on_site, part) for n, part in enumerate(parts))


def assemble(folder: Path) -> None:
    """Copy all pages, and what they need, into `folder`."""
    places = documents()
    for path, place in places.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / path).read_text(encoding="utf-8")
        target.write_text(linked(text, path, places) if path.endswith(".md") else text, encoding="utf-8")
    shutil.copy(ROOT / "docs" / "site" / "site.css", folder)


def main() -> None:
    pages = BUILD / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    assemble(pages)
    mermaid = importlib.util.find_spec("artoo_mermaid")
    if mermaid is None or mermaid.origin is None:
        sys.exit("docs.lock is not installed here: `make docs` builds the site in an environment of its own")
    shutil.copy(Path(mermaid.origin).parent / "assets" / "mermaid.min.js", pages)
    shutil.copy(ROOT / "docs" / "site" / "zensical.toml", BUILD)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=BUILD, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    print(f"the site is {BUILD / 'site' / 'index.html'}")


if __name__ == "__main__":
    main()
