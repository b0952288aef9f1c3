"""Texts of users and models in Markdown, in which a text stays a text."""

from __future__ import annotations

import re

from markupsafe import escape


def markdown_text(text: str) -> str:
    """Text on one line that neither Markdown nor the HTML in it can take for markup."""
    line = str(escape(" ".join(text.split()))).replace("&#39;", "'")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", line)
