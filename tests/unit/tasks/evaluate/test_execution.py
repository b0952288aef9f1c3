"""Execution accuracy: right is what returns the reference's rows, and a reference that does not run marks nobody."""

import pytest

from infra.sandbox.sql import ReadOnlyDatabase
from tasks.evaluate.heldout.execution import mark
from tasks.rows import Row

DATABASES = {"d": ReadOnlyDatabase("CREATE TABLE t(id INTEGER); INSERT INTO t VALUES (1), (2);", timeout_s=0.5)}


def _row(reference: str, database: str = "d") -> Row:
    return Row(instruction="Which ids?", response=reference, database=database)


@pytest.mark.parametrize(
    ("reference", "answer", "correct"),
    [
        ("SELECT id FROM t", "```sql\nSELECT id FROM t ORDER BY id DESC\n```", True),
        ("```sql\nSELECT id FROM t\n```", "SELECT id FROM t", True),
        ("SELECT id FROM t WHERE id IN (SELECT id FROM t ORDER BY id)", "SELECT id FROM t ORDER BY id DESC", True),
        ("SELECT id FROM t ORDER BY id", "SELECT id FROM t ORDER BY id DESC", False),
        ("SELECT id FROM t", "SELECT 1", False),
        ("SELECT id FROM t", "nonsense", False),
        ("SELECT missing FROM t", "SELECT id FROM t", None),
        ("SELECT missing FROM t", "nonsense", None),
        ("```sql\nSELECT id FRM t\n```", "SELECT id FROM t", None),
        ("", "SELECT id FROM t", None),
    ],
)
def test_an_answer_is_marked_against_a_reference_that_runs(reference: str, answer: str, correct: bool | None) -> None:
    assert mark(_row(reference), answer, DATABASES).correct is correct
    assert mark(_row(reference, "elsewhere"), answer, DATABASES).correct is None
