"""The user's data from S3, and what of them enters a fingerprint."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigurationError
from infra.sandbox.sql import ReadOnlyDatabase
from infra.store import storage
from infra.store.artifacts import ArtifactReader, facts_of
from tasks.evaluate.heldout.execution import mark
from tasks.rows import HELDOUT, TRAIN, read_rows
from tasks.seeds import stage
from tasks.seeds.account import DUPLICATE, NOT_SAMPLED, PRIVATE, sentences
from tasks.seeds.references import FAILS
from tasks.seeds.settings import Reading
from tasks.seeds.stage import LoadSeeds, Sources, open_databases, read_databases
from tasks.seeds.turns import NOT_TRAINED_ON
from tasks.text.leaks import HELD_OUT
from tasks.text.private import Handling
from tests.support.stages import load, made

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
    assert here == ref


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
    left_out = facts_of(ref)["references_fail"]
    assert {one["instruction"] for one in left_out} == set(REFERENCES) - kept
    assert next(one["why"] for one in left_out if one["instruction"] == "missing table") == "no such table: nowhere"
    assert facts_of(ref)["files"]["heldout"]["left_out"] == {FAILS: len(REFERENCES) - ref.counts["heldout"]}
    assert any(FAILS in sentence for sentence in sentences(facts_of(ref)))
    databases = open_databases(ref)
    assert all(mark(row, row.response, databases).correct in (True, None) for row in read_rows(ref, HELDOUT))


def test_heldout_rows_of_which_every_reference_fails_are_refused(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"no row of .*heldout.jsonl can be used .*2: {FAILS}"):
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


def test_dumps_are_found_in_nested_folders_and_two_of_one_name_are_refused(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(_jsonl(20))
    (tmp_path / "dumps" / "d").mkdir(parents=True)
    (tmp_path / "dumps" / "d" / "d.sql").write_bytes(b"\xef\xbb\xbf" + DUMP.encode())
    sources = Sources.of(str(tmp_path / "s.jsonl"), None, str(tmp_path / "dumps"))
    assert set(open_databases(load(sources, heldout_share=0.2, response_required=True))) == {"d"}
    (tmp_path / "dumps" / "d.sql").write_text(DUMP)
    with pytest.raises(ConfigurationError, match=r"holds two dumps named d.sql"):
        load(sources, heldout_share=0.2, response_required=True)
    for folder in ("dumps/d.sql", "dumps/d/d.sql"):
        storage.put(f"s3://{bucket}/{folder}", DUMP.encode())
    with pytest.raises(ConfigurationError, match=r"holds two dumps named d.sql"):
        read_databases(f"s3://{bucket}/dumps")


def test_a_dump_in_latin_1_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.sql").write_bytes("INSERT INTO t VALUES ('café');".encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"d.sql in .* is no UTF-8 text .byte 26.: save it in UTF-8"):
        read_databases(str(tmp_path))


def test_a_folder_and_a_prefix_are_all_the_data_in_them(bucket: str, tmp_path: Path) -> None:
    parts = _jsonl(40).splitlines(keepends=True)
    for name, lines in (("1.jsonl", parts[:20]), ("more/2.jsonl.gz", parts[15:])):
        data = b"".join(lines)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data := gzip.compress(data, mtime=0) if name.endswith("gz") else data)
        storage.put(f"s3://{bucket}/many/{name}", data)
    (tmp_path / "notes.md").write_text("no data")
    here = load(Sources(str(tmp_path), None, None), heldout_share=0.2, response_required=True)
    assert here.counts["seeds"] + here.counts["heldout"] == 40
    assert sentences(facts_of(here)) == [
        f"seeds: 5 of 45 rows are left out (5: {DUPLICATE})",
        "seeds: no data by their names, and not read: notes.md",
    ]
    (tmp_path / "notes.md").unlink()
    for place in (f"s3://{bucket}/many", f"s3://{bucket}/many/**", f"s3://{bucket}/many/1.jsonl,{tmp_path}/more"):
        there = load(Sources(place, None, None), heldout_share=0.2, response_required=True)
        assert there.fingerprint == here.fingerprint


@pytest.mark.parametrize("how", ["keep", "count", "mask", "drop"])
def test_private_data_is_counted_masked_or_left_out(bucket: str, tmp_path: Path, how: Handling) -> None:
    mine = "Write to ann.lee@acme-tools.com and to bob@acme-tools.com about card 4111 1111 1111 1111"
    rows = [{"instruction": mine, "output": "Dear ann.lee@acme-tools.com"}]
    rows += [{"instruction": f"say {n}", "output": str(n)} for n in range(20)]
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "h.jsonl").write_text(json.dumps({"instruction": "other", "output": "x"}))
    sources = Sources(str(tmp_path / "s.jsonl"), str(tmp_path / "h.jsonl"), None)
    ref = made(LoadSeeds(sources=sources, heldout_share=0.1, response_required=True, reading=Reading(private=how)))
    said = [row for row in read_rows(ref, TRAIN) if not row.instruction.startswith("say")]
    file = facts_of(ref)["files"]["seeds"]
    assert file["private"] == ({} if how == "keep" else {"card": 1, "email": 1})
    assert file["left_out"] == ({PRIVATE: 1} if how == "drop" else {})
    if how == "mask":
        assert [(row.instruction, row.response) for row in said] == [
            ("Write to [email] and to [email 2] about card [card]", "Dear [email]")
        ]
        assert said[0].origin_seed == said[0].id
    else:
        assert [row.instruction for row in said] == ([] if how == "drop" else [mine])
    words = {
        "count": "kept as it is; data.private=mask",
        "mask": "private data, masked: card",
        "drop": "left out: card",
    }
    assert any(words[how] in one for one in sentences(facts_of(ref))) if how in words else not sentences(facts_of(ref))


def test_a_row_that_comes_often_is_likelier_in_the_sample(bucket: str, tmp_path: Path) -> None:
    often, once = range(0, 200, 2), range(1, 200, 2)
    numbers = [*once, *(n for n in often for _ in range(9))]
    rows = [{"instruction": f"say {n}", "output": str(n)} for n in numbers]
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "h.jsonl").write_text(json.dumps({"instruction": "say 7", "output": "7"}))
    sources = Sources(str(tmp_path / "s.jsonl"), str(tmp_path / "h.jsonl"), None)
    ref = made(LoadSeeds(sources=sources, heldout_share=0.1, response_required=True, reading=Reading(max_seeds=50)))
    chosen = [int(row.response) for row in read_rows(ref, TRAIN)]
    assert len(chosen) == len(set(chosen)) == 50
    assert 40 <= sum(n % 2 == 0 for n in chosen) < 50, "nine times as often, and not always"
    assert 7 not in chosen
    [left_out] = [facts_of(ref)["files"]["seeds"]["left_out"]]
    assert left_out == {DUPLICATE: 800, HELD_OUT: 1, NOT_SAMPLED: 149}


def test_columns_and_rows_that_are_not_used_are_in_the_record(bucket: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"instruction": f"count {n}", "output": str(n), "topic": "x"} for n in range(20)]
    rows += [rows[0], {"instruction": "never", "output": "x", "weight": 0}]
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ref = load(Sources(str(tmp_path / "s.jsonl"), None, None), heldout_share=0.2, response_required=True)
    [file] = facts_of(ref)["files"].values()
    assert (file["read"], file["used"], file["unused"]) == (22, 20, {"topic": 21})
    assert file["left_out"] == {DUPLICATE: 1, NOT_TRAINED_ON: 1}
    assert sentences(facts_of(ref)) == [
        f"seeds: 2 of 22 rows are left out (1: {NOT_TRAINED_ON}; 1: {DUPLICATE})",
        f'seeds: the first that {NOT_TRAINED_ON} is row 22: {{"instruction": "never", "output": "x", "weight": 0}}',
        "seeds: columns that are not used: topic (21 rows)",
    ]
    assert ref.counts["seeds"] + ref.counts["heldout"] + ref.counts["left_out"] == 22


def test_large_rows_go_in_several_files(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_CHARACTERS_PER_FILE", 100)
    (tmp_path / "s.jsonl").write_bytes(_jsonl(40))
    ref = load(Sources(str(tmp_path / "s.jsonl"), None, None), heldout_share=0.1, response_required=True)
    assert len(ArtifactReader(ref).names(TRAIN)) > 2
    assert len(list(read_rows(ref, TRAIN))) == ref.counts["seeds"]


def test_too_few_seeds_to_hold_some_out_are_refused(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(_jsonl(1))
    with pytest.raises(ConfigurationError, match="too few to hold some out"):
        load(Sources.of(str(tmp_path / "s.jsonl"), None, None), heldout_share=0.1, response_required=True)
