"""Benchmark files of other shapes: read as they are meant, or refused in one sentence with file, entry and field."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigurationError
from tasks.evaluate.benchmarks import mt_bench, questions
from tasks.evaluate.benchmarks.length_control import length_controlled
from tasks.evaluate.benchmarks.questions import Conversation

MT = {"question_id": 81, "category": "math", "turns": ["one", "two"]}
IF = {"key": 1, "prompt": "Write.", "instruction_id_list": ["a:b"], "kwargs": [{}]}
ALPACA = {"instruction": "Add.", "output": "3"}
GAMED = "index,preference,std_delta_len,instruction_difficulty\n"


def _file(folder: Path, *entries: Any) -> str:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(path)


@pytest.mark.parametrize(
    ("turns", "read"),
    [
        ("What is 2 + 2?", ("What is 2 + 2?",)),
        ('["one", "two"]', ("one", "two")),
        ("[sic] is Latin", ("[sic] is Latin",)),
        (["one"], ("one",)),
    ],
)
def test_turns_given_as_text_are_turns_and_not_letters(tmp_path: Path, turns: Any, read: tuple[str, ...]) -> None:
    source = _file(tmp_path, {**MT, "turns": turns, "reference": "4"})
    [question] = questions.mt_bench(source)
    assert (question.turns, question.references) == (read, ("4",))
    [again] = questions.mt_bench(_file(tmp_path, MT), _file_of_references(tmp_path, turns))
    assert again.references == read


def _file_of_references(folder: Path, turns: Any) -> str:
    path = folder / "references.jsonl"
    path.write_text(json.dumps({"question_id": 81, "choices": [{"turns": turns}]}))
    return str(path)


@pytest.mark.parametrize("reference", [None, math.nan, [], [None, None], ["", " "]])
def test_a_reference_that_is_none_is_not_graded_against(tmp_path: Path, reference: Any) -> None:
    [question] = questions.mt_bench(_file(tmp_path, {**MT, "reference": reference}))
    told = mt_bench.result([Conversation(question=question, answers=("a", "b"))], [])
    assert told["without_reference"] == 2


def test_nulls_of_arguments_and_of_inputs_are_none(tmp_path: Path) -> None:
    [question] = questions.ifeval(_file(tmp_path, {**IF, "kwargs": [None]}))
    assert question.instructions == (("a:b", {}),)
    for given in (None, math.nan, ""):
        [question] = questions.alpaca_eval(_file(tmp_path, {**ALPACA, "input": given}))
        assert question.turns == ("Add.",)


@pytest.mark.parametrize(
    ("benchmark", "entry", "words"),
    [
        ("mt_bench", {**MT, "turns": []}, "entry 1: `turns` should be a list of texts"),
        ("mt_bench", {**MT, "turns": ["one", None]}, "entry 1: `turns` should be a list of texts"),
        ("mt_bench", {**MT, "turns": [{"content": "one"}]}, "entry 1: `turns` should be a list of texts"),
        ("mt_bench", {**MT, "turns": None}, "entry 1: no `turns`"),
        ("mt_bench", {**MT, "turns": 5}, "entry 1: `turns` should be a list of texts"),
        ("mt_bench", {**MT, "question_id": math.nan}, "entry 1: no `question_id`"),
        ("mt_bench", {**MT, "reference": {"a": 1}}, "entry 1: `reference` should be a list of texts"),
        ("ifeval", {**IF, "prompt": ["Write."]}, "entry 1: `prompt` should be a text"),
        ("ifeval", {**IF, "kwargs": "none"}, "entry 1: `kwargs` should be a list of objects"),
        ("ifeval", {**IF, "kwargs": [1]}, "entry 1: `kwargs` should be a list of objects"),
        ("ifeval", {**IF, "instruction_id_list": [None]}, "entry 1: `instruction_id_list` should be"),
        ("ifeval", {**IF, "kwargs": [{}, {}]}, "entry 1: 1 instructions and 2 `kwargs`"),
        ("alpaca_eval", {**ALPACA, "instruction": 5}, "entry 1: `instruction` should be a text"),
        ("alpaca_eval", {**ALPACA, "output": ["3"]}, "entry 1: `output` should be a text"),
        ("alpaca_eval", {**ALPACA, "system": "Be brief."}, "entry 1: has a `system`, which AlpacaEval cannot ask"),
        ("alpaca_eval", {**ALPACA, "history": [["a", "b"]]}, "entry 1: has a `history`, which AlpacaEval cannot ask"),
        ("alpaca_eval", {**ALPACA, "input": {"a": 1}}, "entry 1: `input` should be a text"),
    ],
)
def test_other_shapes_are_refused_by_entry_and_field(
    tmp_path: Path, benchmark: str, entry: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        getattr(questions, benchmark)(_file(tmp_path, entry))


@pytest.mark.parametrize("choices", [[], [None], {}, [{}], [{"turns": None}], "none"])
def test_reference_files_of_other_shapes_are_refused(tmp_path: Path, choices: Any) -> None:
    path = tmp_path / "references.jsonl"
    path.write_text(json.dumps({"question_id": 81, "choices": choices}))
    with pytest.raises(ConfigurationError, match="references.jsonl, entry 1"):
        questions.mt_bench(_file(tmp_path, MT), str(path))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"instruction": "café"}'.encode("latin-1"), "is no UTF-8 text"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"n": ' + b"1" * 5000 + b"}", "neither a JSON list nor JSON lines"),
        (b"\x00", "neither a JSON list nor JSON lines"),
    ],
)
def test_files_that_are_none_are_refused_in_one_sentence(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "q.json"
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match=words) as caught:
        questions.alpaca_eval(str(path))
    assert "\n" not in str(caught.value)
    (tmp_path / "r.json").write_bytes(data)
    with pytest.raises(ConfigurationError, match="is 2 files: name one of them"):
        questions.alpaca_eval(str(tmp_path))


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([ALPACA]).encode())
    assert len(questions.alpaca_eval(str(path))) == 1
    path.write_bytes(b"\xef\xbb\xbf" + f"{GAMED}0,0.5,1,2\n".encode())
    assert len(questions.gamed_baselines(str(path))) == 1


def test_a_baseline_without_a_preference_is_left_out_and_makes_no_rate_nan(tmp_path: Path) -> None:
    path = tmp_path / "gamed.csv"
    path.write_text(f"{GAMED}0,0.5,1,0.1\n0,NaN,1,0.1\n1,,1,0.1\n1,0.4,-1,0.2\n")
    gamed = questions.gamed_baselines(str(path))
    assert [row["preference"] for row in gamed] == [0.5, 0.4]
    control = length_controlled([0.7, 0.4] * 5, [80, 90] * 5, [90, 80] * 5, [0.1, 0.2] * 5, gamed)
    assert math.isfinite(control.win_rate)


@pytest.mark.parametrize("row", ["0,0.5,NaN,0.1", "0,0.5,1,inf", "0,0.5,1,", "0,much,1,1", "0,1.5,1,1", "0,0.5"])
def test_other_numbers_that_are_none_are_refused_by_row(tmp_path: Path, row: str) -> None:
    path = tmp_path / "gamed.csv"
    path.write_text(f"{GAMED}0,0.5,1,0.1\n{row}\n")
    with pytest.raises(ConfigurationError, match="gamed.csv, row 2"):
        questions.gamed_baselines(str(path))
