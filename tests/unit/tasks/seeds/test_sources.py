"""Where data lie, how they are packed, and what their columns are called: the same rows come of it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from infra.errors import ConfigurationError, TransientError
from tasks.rows import Row
from tasks.seeds import sources
from tasks.seeds.account import Account
from tasks.seeds.files import opened
from tasks.seeds.formats import read
from tasks.seeds.settings import Reading
from tests.support.memory_store import MemoryStore

ROWS = [{"instruction": f"count to {n}", "input": "", "output": f"one … {n}"} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = '﻿instruction,output\r\ncount to 0,one … 0\r\ncount to 1,one … 1\r\n"count to 2","one … 2"\r\n'.encode()


def _rows(path: Path, how: Reading | None = None, account: Account | None = None) -> list[Row]:
    with opened(path) as stream:
        return list(read(str(path), stream, account or Account(), response_required=True, how=how or Reading()))


PACKED: dict[str, bytes] = {
    "plain.jsonl": LINES,
    "lines.jsonl.gz": gzip.compress(LINES),
    "two members.jsonl.gz": gzip.compress(LINES[:50]) + gzip.compress(LINES[50:]),
    "lines.jsonl.zst": pa.compress(LINES, codec="zstd", asbytes=True),
    "two frames.jsonl.zst": b"".join(pa.compress(part, codec="zstd", asbytes=True) for part in (LINES[:9], LINES[9:])),
    "list.json.bz2": bz2.compress(json.dumps(ROWS).encode()),
    "lines.ndjson.xz": lzma.compress(LINES),
    "named otherwise": gzip.compress(LINES),
    "table.csv": CSV,
    "table.csv.gz": gzip.compress(CSV),
    "table.TSV": CSV.replace(b",", b"\t"),
}


@pytest.mark.parametrize("name", PACKED)
def test_however_a_file_is_packed_its_rows_are_the_same(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(PACKED[name])
    assert [(row.instruction, row.response) for row in _rows(tmp_path / name)] == [
        (row["instruction"], row["output"]) for row in ROWS
    ]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("cut.jsonl.gz", gzip.compress(LINES)[:-9], "is packed and does not unpack"),
        ("cut.jsonl.zst", PACKED["lines.jsonl.zst"][:-4], "is packed and does not unpack|not valid JSON"),
        ("broken.jsonl.gz", gzip.compress(LINES)[:15] + b"xx" + gzip.compress(LINES)[17:], "does not unpack"),
        ("long.csv", b'instruction,output\n"a,b\n', "no comma-separated values"),
        ("wide.csv", b"instruction,output\na,b,c\n", "row 1 .line 2.: has more fields than the first"),
        ("latin.csv", "instruction,output\ncafé,b\n".encode("latin-1"), "is no UTF-8 text after line"),
    ],
)
def test_a_damaged_file_gets_one_sentence(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigurationError, match=words):
        _rows(tmp_path / name)


def test_a_packed_parquet_file_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet.gz").write_bytes(gzip.compress((tmp_path / "rows.parquet").read_bytes()))
    with pytest.raises(ConfigurationError, match="is a packed Parquet file, which is packed by itself: unpack it"):
        _rows(tmp_path / "rows.parquet.gz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.jsonl.gz", "a.parquet", "notes.md", ".git/x.jsonl", "b/1.JSON"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_folders_patterns_and_lists_are_files_in_order(folder: Path) -> None:
    def found(source: str) -> list[str]:
        return [str(Path(file).relative_to(folder)) for file in sources.find(source, "seeds").files]

    assert found(str(folder)) == ["a.parquet", "b/1.JSON", "b/2.jsonl.gz"]
    assert sources.find(str(folder), "seeds").others == (str(folder / "notes.md"),)
    assert found(f"{folder}/**/*.jsonl*") == ["b/2.jsonl.gz"]
    assert found(f"{folder}/b, {folder}/a.parquet,{folder}/b/1.JSON") == ["b/1.JSON", "b/2.jsonl.gz", "a.parquet"]
    (folder / "a,b.jsonl").write_bytes(b"x")
    assert found(f"{folder}/a,b.jsonl") == ["a,b.jsonl"]


def test_a_comma_in_a_name_in_storage_parts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore().replace(monkeypatch)
    for name in ("a.jsonl", "a,b.jsonl", "b.jsonl", "c,d/1.jsonl", "c,d/2.jsonl"):
        store.put(f"s3://data/{name}", b"{}")

    def found(source: str) -> list[str]:
        return [file.removeprefix("s3://data/") for file in sources.find(source, "seeds").files]

    assert found("s3://data/a,b.jsonl") == ["a,b.jsonl"]
    assert found("s3://data/c,d") == found("s3://data/c,d/") == ["c,d/1.jsonl", "c,d/2.jsonl"]
    assert found("s3://data/b.jsonl, s3://data/a.jsonl") == ["b.jsonl", "a.jsonl"]
    with pytest.raises(ConfigurationError, match="seeds: s3://data/x does not exist"):
        found("s3://data/x,s3://data/b.jsonl")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{0}/nothing.jsonl", "seeds: there is no file"),
        ("{0}/*.csv", "seeds: no file is like"),
        ("{0}/empty", r"seeds: the folder .* has no .jsonl, .* file in it .it is empty."),
        ("{0}/other", r"has no .* file in it .it holds a.txt."),
        ("{0}/a.parquet,{0}/b.parquet", "there is no file .*b.parquet"),
        ("hub:alone", "names no data set: expected hub:OWNER/DATASET"),
    ],
)
def test_a_source_that_is_none_gets_one_sentence(folder: Path, source: str, words: str) -> None:
    (folder / "empty").mkdir()
    (folder / "other").mkdir()
    (folder / "other" / "a.txt").write_text("x")
    with pytest.raises(ConfigurationError, match=words):
        sources.find(source.format(folder), "seeds")


def test_where_files_lie_does_not_matter_and_what_is_in_them_does(tmp_path: Path) -> None:
    for name, data in (("one/a.jsonl", b"1"), ("one/b.jsonl", b"2"), ("two/c.jsonl", b"1"), ("two/d.jsonl", b"2")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    one, two = (sources.digest(str(tmp_path / name), "seeds") for name in ("one", "two"))
    assert one == two
    (tmp_path / "two/d.jsonl").write_bytes(b"3")
    assert sources.digest(str(tmp_path / "two"), "seeds") != one


FILES = ["README.md", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test.parquet"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[list[str]], None]]:
    """The hub is outside of this machine: what it would answer."""

    class Sibling:
        def __init__(self, name: str):
            self.rfilename = name

    def holds(names: list[str]) -> None:
        info = type("Info", (), {"sha": "c0ffee", "siblings": list(map(Sibling, names))})
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda _self, _name: info)

    def download(dataset: str, file: str, **asked: Any) -> str:
        assert (dataset, asked) == ("owner/set", {"repo_type": "dataset", "revision": "c0ffee"})
        (tmp_path / "copy").write_text(file)
        return str(tmp_path / "copy")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    sources._listed.cache_clear()
    holds(FILES)
    yield holds
    sources._listed.cache_clear()


@pytest.mark.parametrize(
    ("source", "names", "found"),
    [
        ("hub:owner/set", FILES, FILES[1:3]),
        ("hub:owner/set:test", FILES, FILES[3:]),
        ("hub:owner/set/data/test.parquet", FILES, FILES[3:]),
        ("hub:owner/set", ["all.jsonl", "test.jsonl"], ["all.jsonl"]),
        ("hub:owner/set/de", ["de/train.jsonl", "fr/train.jsonl"], ["de/train.jsonl"]),
    ],
)
def test_a_split_of_the_hub_is_its_files(
    hub: Callable[[list[str]], None], source: str, names: list[str], found: list[str]
) -> None:
    hub(names)
    files = sources.find(source, "seeds").files
    assert files == tuple(f"hub:owner/set@c0ffee/{name}" for name in found)
    assert sources.find(files[0], "seeds").files == files[:1]
    with sources.local(files[0], "seeds") as path:
        assert path.read_text() == found[0]


@pytest.mark.usefixtures("hub")
def test_a_split_that_the_hub_has_not_is_named() -> None:
    with pytest.raises(
        ConfigurationError, match="no file of the split 'validation' .it has data/test.parquet, data/train-"
    ):
        sources.find("hub:owner/set:validation", "seeds")


def test_no_hub_is_tried_again_and_no_data_set_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    request = httpx.Request("GET", "https://hub/api")
    for error, wanted, words in (
        (LocalEntryNotFoundError("away"), TransientError, "the hub cannot be reached"),
        (httpx.ConnectError("away"), TransientError, "the hub cannot be reached"),
        (
            RepositoryNotFoundError("no", response=httpx.Response(404, request=request)),
            ConfigurationError,
            "does not exist on the hub .or needs HF_TOKEN",
        ),
    ):

        def fails(*_asked: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fails)
        sources._listed.cache_clear()
        with pytest.raises(wanted, match=words):
            sources.find("hub:owner/set", "seeds")


def test_columns_are_read_as_what_they_mean(tmp_path: Path) -> None:
    asked = [{"question": "q", "answer": "r", "instruction": "an id", "topic": "maths"}]
    (tmp_path / "a.jsonl").write_text(json.dumps(asked[0]))
    pq.write_table(pa.Table.from_pylist(asked), tmp_path / "a.parquet")
    how = Reading(columns=("instruction=question", "response=answer", "category=topic"))
    for name in ("a.jsonl", "a.parquet"):
        account = Account()
        [row] = _rows(tmp_path / name, how, account)
        assert (row.instruction, row.response, row.task_category) == ("q", "r", "maths")
        assert account.unused == {"instruction": 1}
    with pytest.raises(ConfigurationError, match="has no column 'problem', which data.columns names"):
        _rows(tmp_path / "a.jsonl", Reading(columns=("instruction=question", "response=answer", "input=problem")))


@pytest.mark.parametrize("columns", [("question",), ("asked=question",), ("instruction=",), ("input=a", "output=a")])
def test_columns_that_mean_nothing_are_refused(columns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected MEANING=COLUMN|one column is named with two meanings"):
        Reading(columns=columns)


def test_strict_refuses_the_first_row_that_cannot_be_used(tmp_path: Path) -> None:
    odd = {"messages": [{"role": "narrator", "content": "x"}, {"role": "assistant", "content": "y"}]}
    (tmp_path / "a.jsonl").write_bytes(LINES + json.dumps(odd).encode())
    account = Account()
    assert len(_rows(tmp_path / "a.jsonl", account=account)) == len(ROWS)
    assert list(account.left_out.values()) == [1]
    with pytest.raises(ConfigurationError, match="row 4: has a turn of a role that is none of"):
        _rows(tmp_path / "a.jsonl", Reading(strict=True))


THOUGHT = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2."}
INLINE = {"role": "assistant", "content": "<think>\n2 and 2.\n</think>\n\n4"}


@pytest.mark.parametrize(
    ("answer", "how", "response"),
    [
        (THOUGHT, "as they are", "4"),
        (THOUGHT, "drop", "4"),
        (THOUGHT, "use", INLINE["content"]),
        (INLINE, "as they are", INLINE["content"]),
        (INLINE, "drop", "4"),
        (INLINE, "use", INLINE["content"]),
    ],
)
def test_thoughts_are_left_dropped_or_used(tmp_path: Path, answer: dict[str, str], how: Any, response: str) -> None:
    asked = {"role": "user", "content": "What is 2 + 2?"}
    told = {"messages": [asked, answer, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Yes"}]}
    logged = {"request": {"messages": [asked]}, "response": {"choices": [{"message": answer}]}}
    (tmp_path / "a.jsonl").write_text(json.dumps(told) + "\n" + json.dumps(logged))
    account = Account()
    several, one = _rows(tmp_path / "a.jsonl", Reading(thoughts=how), account)
    assert [turn.content for turn in several.history] == ["What is 2 + 2?", response]
    assert one.response == response
    assert account.unused == ({"messages.reasoning_content": 1} if answer is THOUGHT and how != "use" else {})
