"""Preference pairs: what was corrected or rejected against what was kept, as TRL and `datasets` read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigurationError
from infra.store.artifacts import ArtifactRef
from tasks.augment.pairs import export_pairs
from tasks.augment.settings import Augmentation
from tasks.rows import BEFORE_REWRITING, KEPT, REJECTED, Message, Row, to_parquet
from tests.support.stages import augment_workspace

HISTORY = (Message(role="system", content="Be brief."),)
CORRECTED = Row(
    instruction="Add 2 and 2",
    response="4",
    history=HISTORY,
    task_category="math",
    language="en",
    verdicts={"preservation": "was wrong", BEFORE_REWRITING: "5"},
)
COUNTED = Row(instruction="Count", input="CREATE TABLE t(id)", response="SELECT 1;", database="shop")


def _artifact(kept: list[Row], rejected: list[tuple[str, Row]] | None = None) -> ArtifactRef:
    seeds = ArtifactRef(kind="seeds", uri="s3://x/", sha256="0", fingerprint="0", counts={"seeds": 4})
    work = augment_workspace(seeds, Augmentation(), repr(kept))
    for index, row in enumerate(kept):
        work.put(f"{KEPT}{index:05}.parquet", to_parquet([row]))
    agents, rows = [agent for agent, _ in rejected or []], [row for _, row in rejected or []]
    extra = {"agent": agents, "reason": ["said so"] * len(rows), "detail": [""] * len(rows)}
    work.put(f"{REJECTED}00000-verified.parquet", to_parquet(rows, extra))
    return work.publish((KEPT, REJECTED), {"rows": len(kept)}, {})


def _with(row: Row, **changes: Any) -> Row:
    return row.model_copy(update=changes)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_a_corrected_response_is_chosen_over_the_one_before(bucket: str, tmp_path: Path) -> None:
    done = export_pairs(_artifact([COUNTED, CORRECTED]), tmp_path / "pairs.jsonl")
    assert dict(done.pairs) == {"rewriting": 1}
    (pair,) = _lines(tmp_path / "pairs.jsonl")
    assert pair == {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add 2 and 2"}],
        "chosen": [{"role": "assistant", "content": "4"}],
        "rejected": [{"role": "assistant", "content": "5"}],
        "source": "rewriting",
        "id": CORRECTED.id,
        "category": "math",
        "language": "en",
        "database": "",
    }


def test_what_verification_rejected_stands_against_the_first_kept_row_of_the_same_question(
    bucket: str, tmp_path: Path
) -> None:
    kept = [COUNTED, _with(COUNTED, response="SELECT 01;"), CORRECTED]
    rejected = [
        ("verification", _with(COUNTED, response="SELECT 2;")),
        ("verification", _with(COUNTED, response="SELECT 2;", verdicts={"verification": "again"})),
        ("verification", _with(COUNTED, response="SELECT 3;")),
        ("verification", _with(COUNTED, response="SELECT 1; ")),
        ("verification", _with(COUNTED, response="SELECT 4;", database="school")),
        ("verification", _with(COUNTED, response="SELECT 5;", history=HISTORY)),
        ("selection", _with(COUNTED, response="SELECT 6;")),
    ]
    done = export_pairs(_artifact(kept, rejected), tmp_path / "pairs.jsonl")
    assert dict(done.pairs) == {"verification": 2, "rewriting": 1}
    assert dict(done.left_out) == {
        "pairs of two equal responses": 1,
        "rejected rows that say what another one says": 1,
        "rows rejected as incorrect without a kept row of the same question": 2,
    }
    found = [
        (one["source"], one["chosen"][0]["content"], one["rejected"][0]["content"])
        for one in _lines(tmp_path / "pairs.jsonl")
    ]
    assert found == [
        ("verification", "SELECT 1;", "SELECT 2;"),
        ("verification", "SELECT 1;", "SELECT 3;"),
        ("rewriting", "4", "5"),
    ]


@pytest.mark.parametrize("before", [{}, {BEFORE_REWRITING: "4\n"}])
def test_without_a_pair_there_is_a_sentence_and_no_file(bucket: str, tmp_path: Path, before: dict[str, str]) -> None:
    """As of an artifact of an earlier version, which has no response before."""
    row = _with(CORRECTED, verdicts={"preservation": "was wrong", **before})
    rejected = [("verification", _with(row, instruction="Add 2 and 3"))]
    with pytest.raises(ConfigurationError, match="holds no preference pairs: no kept row has the response that"):
        export_pairs(_artifact([row], rejected), tmp_path / "pairs.jsonl")
    assert list(tmp_path.glob("pairs*")) == []


def test_datasets_loads_pairs(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    odd = _with(CORRECTED, response='引号 " 和\n\u2028换行 🙂', language="zh")
    export_pairs(_artifact([CORRECTED, odd]), tmp_path / "pairs.jsonl")
    path, cache = str(tmp_path / "pairs.jsonl"), str(tmp_path / "cache")
    loaded = datasets.load_dataset("json", data_files=path, split="train", cache_dir=cache)
    assert loaded["language"] == ["en", "zh"]
    assert loaded[1]["chosen"] == [{"role": "assistant", "content": odd.response}]
    assert {"prompt", "chosen", "rejected"} <= set(loaded.column_names)
