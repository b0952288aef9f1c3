"""The user's data from S3, and what of them enters a fingerprint."""

import json
from pathlib import Path

import pytest

from infra import storage
from infra.artifacts import facts_of
from infra.errors import ConfigurationError
from infra.sandbox import ReadOnlyDatabase
from tasks.evaluate.execution import mark
from tasks.rows import HELDOUT, TRAIN, read_rows
from tasks.seeds.stage import Sources, load, open_databases

DUMP = "CREATE TABLE t(id INTEGER); INSERT INTO t VALUES (1), (2);"


def _jsonl(count: int) -> bytes:
    rows = ({"instruction": f"count {n}", "output": f"SELECT {n}", "database": "d"} for n in range(count))
    return "\n".join(map(json.dumps, rows)).encode()


def test_seeds_and_databases_are_read_from_s3_and_where_they_lie_does_not_matter(bucket: str, tmp_path: Path) -> None:
    storage.put(f"s3://{bucket}/in/seeds.jsonl", _jsonl(40))
    storage.put(f"s3://{bucket}/in/databases/d.sql", DUMP.encode())
    there = Sources.of(f"s3://{bucket}/in/seeds.jsonl", None, f"s3://{bucket}/in/databases")
    ref = load(there, heldout_share=0.25, response_required=True)
    train, heldout = ({row.id for row in read_rows(ref, prefix)} for prefix in (TRAIN, HELDOUT))
    assert len(train) + len(heldout) == 40
    assert heldout
    assert not train & heldout
    assert isinstance(open_databases(ref)["d"], ReadOnlyDatabase)
    assert open_databases(ref)["d"].run("SELECT count(*) FROM t") == ((2,),)

    (tmp_path / "mine.jsonl").write_bytes(_jsonl(40))
    (tmp_path / "d.sql").write_text(DUMP)
    here = load(
        Sources.of(str(tmp_path / "mine.jsonl"), None, str(tmp_path)), heldout_share=0.25, response_required=True
    )
    assert here.cached
    assert here.fingerprint == ref.fingerprint


REFERENCES = {
    "runs": ("SELECT id FROM t", True),
    "in a fence": ("```sql\nSELECT id FROM t\n```", True),
    "in a fence with words": ("This one:\n```SQL\nSELECT id FROM t;\n```\nIt lists them.", True),
    "after a thought": ("<think>SELECT x?</think>\nSELECT id FROM t", True),
    "of no database": ("no SQL at all", True),
    "missing table": ("SELECT id FROM nowhere", False),
    "missing column in a fence": ("```sql\nSELECT nothing FROM t\n```", False),
    "syntax": ("SELECT id FRM t", False),
    "writes": ("DELETE FROM t", False),
    "words alone": ("It cannot be asked.", False),
    "endless": ("WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x FROM r) SELECT count(*) FROM r", False),
}


def _heldout(folder: Path, names: list[str]) -> Sources:
    rows = [
        {"instruction": name, "output": REFERENCES[name][0], "database": "" if name == "of no database" else "d"}
        for name in names
    ]
    (folder / "heldout.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "seeds.jsonl").write_bytes(_jsonl(3))
    (folder / "d.sql").write_text(DUMP)
    return Sources(str(folder / "seeds.jsonl"), str(folder / "heldout.jsonl"), str(folder))


def test_a_heldout_row_whose_reference_fails_is_left_out_counted_and_named(bucket: str, tmp_path: Path) -> None:
    ref = load(_heldout(tmp_path, list(REFERENCES)), heldout_share=0.1, response_required=True)
    kept = {row.instruction for row in read_rows(ref, HELDOUT)}
    assert kept == {name for name, (_sql, runs) in REFERENCES.items() if runs}
    left_out = facts_of(ref)["heldout_references_fail"]
    assert {one["instruction"] for one in left_out} == set(REFERENCES) - kept
    assert next(one["why"] for one in left_out if one["instruction"] == "missing table") == "no such table: nowhere"
    assert ref.counts["heldout"] + ref.counts["heldout_references_fail"] == len(REFERENCES)
    databases = open_databases(ref)
    assert all(mark(row, row.response, databases).correct in (True, None) for row in read_rows(ref, HELDOUT))


def test_heldout_rows_of_which_every_reference_fails_are_refused(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"every held-out row fails .*'syntax' on 'd': near .* the databases"):
        load(_heldout(tmp_path, ["syntax", "missing table"]), heldout_share=0.1, response_required=True)


@pytest.mark.parametrize(("dump", "words"), [(None, "holds no *.sql dumps"), ("CREATE nonsense", "d.sql")])
def test_databases_that_are_missing_or_do_not_load_are_named(
    bucket: str, tmp_path: Path, dump: str | None, words: str
) -> None:
    (tmp_path / "s.jsonl").write_bytes(_jsonl(3))
    if dump:
        (tmp_path / "d.sql").write_text(dump)
    sources = Sources.of(str(tmp_path / "s.jsonl"), None, str(tmp_path))
    with pytest.raises(ConfigurationError) as caught:
        load(sources, heldout_share=0.5, response_required=True)
    assert words in str(caught.value)


def test_too_few_seeds_to_hold_some_out_are_refused(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(_jsonl(1))
    with pytest.raises(ConfigurationError, match="too few to hold some out"):
        load(Sources.of(str(tmp_path / "s.jsonl"), None, None), heldout_share=0.1, response_required=True)
