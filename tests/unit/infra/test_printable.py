"""What comes from models, data and providers is shown as text: no character of it steers a terminal."""

from __future__ import annotations

import io

import pytest
from rich.markup import escape
from rich.table import Table

from infra.console import Console
from infra.errors import ConfigurationError
from infra.printable import printable

HOSTILE = "a\x1b[2Jb\x1b]0;title\x07c\rd\x9b1me\u202ef"
HARMLESS = "a�[2Jb�]0;title�c�d�1me�f"


@pytest.mark.parametrize("text", ["plain, ümläut, 汉字, עברית", "two\nlines\tand a tab", "👩‍🔬 é"])
def test_honest_text_stays(text: str) -> None:
    assert printable(text) == text


def test_a_console_sends_no_control_character_of_a_text_and_keeps_its_own_colours() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=200, highlight=False)
    table = Table("answer")
    table.add_row(escape(HOSTILE))
    console.print(f"[green]{escape(HOSTILE)}[/green]", soft_wrap=True)
    console.print(HOSTILE, markup=False)
    console.print(table)
    assert shown.getvalue().count("a�[2Jb�]0;titlecd�1") == 3  # rich itself leaves bell and return out
    assert "\x1b[32m" in shown.getvalue()
    for trace in ("\x1b[2J", "\x1b]0", "\x07", "\r", "\x9b", "\u202e"):
        assert trace not in shown.getvalue()


def test_a_message_of_ours_that_quotes_data_is_fit_for_every_place_that_it_goes_to() -> None:
    assert str(ConfigurationError(f"row 3: {HOSTILE}")) == f"row 3: {HARMLESS}"
