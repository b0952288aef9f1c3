"""The user's data from S3, and what of them enters a fingerprint."""

import json
from pathlib import Path

import pytest

from infra import storage
from infra.errors import ConfigurationError
from infra.sandbox import ReadOnlyDatabase
from tasks.rows import HELDOUT, TRAIN, read_rows
from tasks.seeds.stage import Sources, load, open_databases

DUMP = "CREATE TABLE t(id INTEGER); INSERT INTO t VALUES (1), (2);"


def _jsonl(count: int) -> bytes:
    rows = ({"instruction": f"count {n}", "output": str(n), "database": "d"} for n in range(count))
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
