"""One notion of the answer, and of the code in it."""

import pytest

from tasks.text.answers import SQL, answer_of, code_in


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("SELECT 1", "SELECT 1"),
        ("<think>\n\n</think>\n\nSELECT 1", "SELECT 1"),
        ("\n<think>first <think> again</think>SELECT 1", "SELECT 1"),
        ("so the template opened it\n</think>\n\nSELECT 1", "SELECT 1"),
        ("[THINK]how[/THINK]SELECT 1", "SELECT 1"),
        ("<think>it never ends: SELECT 1", ""),
        ("<think>and nothing follows</think>", ""),
        ("close a tag with </think> and go on", "close a tag with </think> and go on"),
        ("use <think> and </think> as tags", "use <think> and </think> as tags"),
        ("  indented", "  indented"),
        ("", ""),
    ],
)
def test_the_answer_is_what_follows_the_thought(text: str, answer: str) -> None:
    assert answer_of(text) == answer


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("SELECT 1", "SELECT 1"),
        ("```sql\nSELECT 1```", "SELECT 1"),
        ("Here:\n```SQL title\nSELECT 1\n```\nand so on", "SELECT 1"),
        ("```\nSELECT 1\n```", "SELECT 1"),
        ("```text\n| 1 |\n```\n```sql\nSELECT 1\n```", "SELECT 1"),
        ("```text\nfirst\n```\n```\nsecond\n```", "first"),
        ("```sql\nSELECT 1", "SELECT 1"),
        ("in `SELECT` lies all", "in `SELECT` lies all"),
    ],
)
def test_the_code_is_the_first_fence_in_its_language_else_the_first_else_all(answer: str, code: str) -> None:
    assert code_in(answer, SQL) == code


@pytest.mark.parametrize("text", ["```" + "a" * 300_000, "```sql" * 50_000, "```\n" * 50_000, "<think>" * 50_000])
def test_hostile_text_takes_no_longer_than_it_is_long(text: str) -> None:
    """Quadratic time would be beyond the test's limit."""
    assert len(code_in(answer_of(text), SQL)) <= len(text)
