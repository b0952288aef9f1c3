"""Augmented rows in other programs' formats: nothing changed, nothing lost, and `datasets` loads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.errors import ConfigurationError
from infra.store.artifacts import ArtifactRef
from tasks.augment.export import export
from tasks.augment.settings import Augmentation, RowFormat
from tasks.rows import KEPT, REJECTED, Message, Row, to_parquet
from tasks.seeds.formats import parse
from tests.support.stages import augment_workspace

HISTORY = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Hello"),
)
ROWS = [
    Row(instruction="Count the users", input="CREATE TABLE users(id)", response="SELECT 1;", database="shop"),
    Row(instruction="用一句话\u2028解释", response='引号 " 和\n换行 \\ 🙂', language="zh", task_category="explain"),
    Row(instruction="And now?", response="Later", history=HISTORY, scores={"helpfulness": 7.0}, verdicts={"a": "b"}),
]
REJECTS = [Row(instruction="bad", response="wrong")]


@pytest.fixture
def augmented(bucket: str) -> ArtifactRef:
    seeds = ArtifactRef(kind="seeds", uri="s3://x/", sha256="0", fingerprint="0", counts={"seeds": 4})
    work = augment_workspace(seeds, Augmentation(), "test")
    work.put(f"{KEPT}00000.parquet", to_parquet(ROWS[:2]))
    work.put(f"{KEPT}00001.parquet", to_parquet(ROWS[2:]))
    left_out = {"agent": ["verification"], "reason": ["judged incorrect"], "detail": [""]}
    work.put(f"{REJECTED}00000-verified.parquet", to_parquet(REJECTS, left_out))
    return work.publish((KEPT, REJECTED), {"rows": 3}, {})


@pytest.mark.parametrize("form", ["alpaca", "messages"])
def test_what_is_exported_comes_back_as_seeds(augmented: ArtifactRef, tmp_path: Path, form: RowFormat) -> None:
    path = tmp_path / "rows.jsonl"
    assert export(augmented, path, form) == (3, 0)
    back = parse("rows.jsonl", path.read_bytes(), response_required=True)
    if form == "messages":  # instruction and input are one user turn there
        assert [row.messages for row in back] == [row.messages for row in ROWS]
    else:
        assert [row.id for row in back[:2]] == [row.id for row in ROWS[:2]]
        assert [row.database for row in back] == ["shop", "", ""]
    assert [row.task_category for row in back] == [row.task_category for row in ROWS]


def test_earlier_turns_are_llama_factorys_system_and_history(augmented: ArtifactRef, tmp_path: Path) -> None:
    export(augmented, tmp_path / "rows.jsonl", "alpaca")
    last = json.loads((tmp_path / "rows.jsonl").read_text().split("\n")[2])
    assert (last["system"], last["history"]) == ("Be brief.", [["Hi", "Hello"]])


def test_sharegpt_has_every_turn(augmented: ArtifactRef, tmp_path: Path) -> None:
    export(augmented, tmp_path / "rows.jsonl", "sharegpt")
    last = json.loads((tmp_path / "rows.jsonl").read_text().split("\n")[2])
    assert [turn["from"] for turn in last["conversations"]] == ["system", "human", "gpt", "human", "gpt"]
    assert last["conversations"][-1]["value"] == "Later"


@pytest.mark.parametrize("form", ["alpaca", "sharegpt", "messages", "parquet"])
def test_datasets_loads_every_form(
    augmented: ArtifactRef, tmp_path: Path, form: RowFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    path = tmp_path / "rows"
    assert export(augmented, path, form) == (3, 0)
    kind = "parquet" if form == "parquet" else "json"
    loaded = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["id"] == [row.id for row in ROWS]
    if form == "parquet":
        assert loaded[2]["scores"] == [{"of": "helpfulness", "score": 7.0}]
        assert loaded[1]["response"] == ROWS[1].response


def test_rejected_rows_keep_agent_and_reason(augmented: ArtifactRef, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    assert export(augmented, tmp_path / "out.parquet", "parquet", "rejected").rows == 1
    assert pq.read_table(tmp_path / "out.parquet")["reason"].to_pylist() == ["judged incorrect"]
    assert export(augmented, tmp_path / "none.parquet", "parquet", "failed").rows == 0
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0


def test_a_corrupt_artifact_leaves_no_file(augmented: ArtifactRef, tmp_path: Path) -> None:
    from infra.store import storage

    storage.put(f"{augmented.uri}{KEPT}00001.parquet", b"rubbish")
    with pytest.raises(ConfigurationError):
        export(augmented, tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()
