"""No held-out row is trained on, however the overlap came about, and the report's first lines count what it cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigurationError
from infra.store.artifacts import ArtifactRef, facts_of
from tasks.rows import HELDOUT, TRAIN, Row, read_rows
from tasks.seeds.account import sentences
from tasks.seeds.stage import Sources
from tasks.text.leaks import HELD_OUT
from tasks.text.overlap import HeldOut
from tests.support.stages import load

CLEAN = [{"instruction": f"clean question {n}", "output": f"answer {n}"} for n in range(30)]


def _question(n: int) -> dict[str, Any]:
    return {"instruction": f"Which is planet number {n}?", "output": f"planet {n}"}


def _talk(*turns: str, system: str | None = None) -> dict[str, Any]:
    said = [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(turns)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *said]}


HELD: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "the same row": (_question(1), [_question(1)]),
    "other spacing and case": (_question(2), [{"instruction": " which IS\n planet number 2", "output": "planet 2"}]),
    "other answers": (_question(3), [{**_question(3), "output": f"another {n}"} for n in range(10)]),
    "no answer": (_question(4), [{"instruction": "Which is planet number 4?"}]),
    "the input in the instruction": (
        {"instruction": "Name the planet.", "input": "number 5", "output": "five"},
        [{"instruction": "Name the planet.\n\nnumber 5", "output": "five"}, {"prompt": "number 5 Name the planet"}],
    ),
    "the input apart from the instruction": (
        {"instruction": "Name the planet.\n\nnumber 6", "output": "six"},
        [{"instruction": "Name the planet.", "context": "number 6", "response": "six", "category": "open_qa"}],
    ),
    "the first turn of a conversation": (
        _question(7),
        [_talk("Which is planet number 7?", "seven", "And 8?", "eight")],
    ),
    "a later turn of a conversation": (
        _question(8),
        [_talk("Hi", "Hello", "Which is planet number 8?", "8", "Ok", ".")],
    ),
    "with another history": (
        _talk("Hi", "Hello", "Which is planet number 9?", "planet 9"),
        [_talk("Good morning", "Hello", "Which is planet number 9?", "planet 9"), _question(9)],
    ),
    "under another system prompt": (
        _talk("Which is planet number 10?", "ten", system="Be brief."),
        [_talk("Which is planet number 10?", "ten", system="Be kind."), _question(10)],
    ),
    "the beginning of a held-out conversation": (
        _talk("Which is planet number 11?", "eleven", "And the next?", "twelve"),
        [_question(11), _talk("Which is planet number 11?", "eleven", "And the next?", "12", "Thanks", "Welcome")],
    ),
    "another program's format": (
        _question(12),
        [{"conversations": [{"from": "human", "value": "Which is planet number 12?"}, {"from": "gpt", "value": "12"}]}],
    ),
    "duplicates among the seeds": (_question(13), [_question(13)] * 3),
}


def _load(folder: Path, seeds: list[dict[str, Any]], heldout: list[dict[str, Any]] | None, share: float) -> ArtifactRef:
    paths = []
    for name, rows in (("seeds", seeds), ("heldout", heldout)):
        if rows is not None:
            (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
            paths.append(str(folder / f"{name}.jsonl"))
    sources = Sources(paths[0], paths[1] if heldout is not None else None, None)
    return load(sources, heldout_share=share, response_required=False)


def _rows(ref: ArtifactRef, prefix: str) -> list[Row]:
    return list(read_rows(ref, prefix))


def _sums_are_equal(ref: ArtifactRef) -> None:
    files = facts_of(ref)["files"]
    assert all(file["read"] == file["used"] + sum(file["left_out"].values()) for file in files.values())
    assert sum(file["used"] for file in files.values()) == ref.counts["seeds"] + ref.counts["heldout"]


@pytest.mark.parametrize("way", HELD)
def test_what_a_heldout_file_asks_is_not_trained_on(bucket: str, tmp_path: Path, way: str) -> None:
    heldout, planted = HELD[way]
    ref = _load(tmp_path, [*planted, *CLEAN], [heldout], 0.1)
    assert [row.instruction for row in _rows(ref, TRAIN)] == [row["instruction"] for row in CLEAN]
    left_out = facts_of(ref)["files"]["seeds"]["left_out"]
    assert sum(left_out.values()) == len(planted) == ref.counts["left_out"]
    assert left_out[HELD_OUT] >= 1
    assert f"{left_out[HELD_OUT]}: {HELD_OUT}" in sentences(facts_of(ref))[0]
    _sums_are_equal(ref)


def test_all_ways_at_once_without_a_heldout_file(bucket: str, tmp_path: Path) -> None:
    planted = [row for heldout, rows in HELD.values() for row in (heldout, *rows)]
    for share in (0.1, 0.3, 0.6):
        ref = _load(tmp_path, [*planted, *CLEAN], None, share)
        questions = HeldOut.of(_rows(ref, HELDOUT))
        assert not [row for row in _rows(ref, TRAIN) if questions.asked_by(row)]
        _sums_are_equal(ref)


def test_seeds_that_are_all_held_out_are_refused_in_one_sentence(bucket: str, tmp_path: Path) -> None:
    rows = [_question(n) for n in range(20)]
    with pytest.raises(ConfigurationError, match=f"no row of .*20 of 20 rows are left out .*20: {HELD_OUT}"):
        _load(tmp_path, rows, rows, 0.1)


def test_a_heldout_row_without_an_answer_is_told_what_it_lacks(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        _load(tmp_path, CLEAN, [{"instruction": "no answer"}], 0.1)
    assert "heldout.jsonl, row 1" in str(caught.value)
    assert "held out for evaluation and has no response" in str(caught.value)
    assert "augmentation" not in str(caught.value)
