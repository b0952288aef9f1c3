"""What is marked in an answer: nothing is lost, equal texts are unmarked, and the marks are the words that differ."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.report.differences import Piece, unlike


@given(st.text(), st.text())
def test_the_pieces_are_the_whole_text(text: str, other: str) -> None:
    assert "".join(piece.text for piece in unlike(text, other)) == text
    assert not any(piece.is_new for piece in unlike(text, text))


def test_the_words_that_the_other_lacks_are_marked_without_the_space_around() -> None:
    found = unlike("SELECT a FROM t ORDER BY b;", "SELECT a FROM t;")
    assert [piece.text for piece in found if piece.is_new] == ["ORDER BY b"]


def test_characters_are_words_where_there_are_no_spaces() -> None:
    assert [piece for piece in unlike("我喜欢茶", "我喜欢水") if piece.is_new] == [Piece("茶", True)]
