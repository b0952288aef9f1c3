"""The reports of several runs beside the page that compares them, which links to each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace

FOLDER = "reports/"
_LONGEST = 100  # characters of a file's name


def report_file(name: str) -> str:
    """Where the report of the run of that name lies beside the page: safe as a path and in a link, and its own."""
    plain = re.sub(r"[^A-Za-z0-9._=+-]+", "-", name).lstrip(".")[:_LONGEST]
    mark = "" if plain == name else f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{FOLDER}{plain}{mark}.html"


def copy_reports(work: Workspace, reports: Mapping[str, ArtifactRef]) -> None:
    """Put the pages of `reports`, by the names of their runs, beside the one that is being made."""
    for name, ref in reports.items():
        work.put(report_file(name), ArtifactReader(ref).read("report.html"))
