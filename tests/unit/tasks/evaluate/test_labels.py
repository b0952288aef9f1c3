"""People's labels: read whole or refused with their place, matched with what was judged, and nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.errors import ConfigurationError
from tasks.evaluate.benchmarks import alpaca_eval, artifacts, labels
from tasks.evaluate.benchmarks.judges import Judgment
from tasks.evaluate.benchmarks.labels import Label
from tasks.evaluate.benchmarks.people import BesidePeople, Judged, JudgeVerdict, beside_people
from tasks.evaluate.benchmarks.questions import Question
from tasks.evaluate.benchmarks.settings import Benchmarks, Judging

VARIANTS = ("base", "sft", "sft_control", "kd", "teacher")
PAIRS = [Question(id=str(n), turns=(f"Count  to {n}",)) for n in range(20)] + [
    Question(id="20", turns=("Twice",)),
    Question(id="21", turns=("Twice",)),
]


def _file(folder: Path, text: str) -> str:
    path = folder / "labels"
    path.write_text(text)
    return str(path)


def _label(question: str, value: float, variant: str = "kd", benchmark: str = "alpaca_eval", turn: str = "") -> Label:
    return Label(benchmark, question, variant, value, turn)


LINES = [
    {"question": 3, "variant": "kd", "verdict": "Win"},
    {"question": " Count to\n3", "variant": "ours", "verdict": "tie"},
    {"question": "3", "variant": "theirs", "verdict": "win"},
    {"question": "81", "variant": "sft", "verdict": 7.5},
    {"question": 81.0, "variant": "ours", "verdict": "10", "turn": 2},
]
READ = [
    _label("3", 1.0),
    _label("Count to 3", 0.0),
    _label("3", -1.0),
    _label("81", 7.5, "sft", "mt_bench"),
    _label("81", 10.0, "kd", "mt_bench", "2"),
]


def test_json_lines_a_list_and_csv_say_the_same(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(line) for line in LINES)
    assert labels.read(_file(tmp_path, lines)) == READ
    assert labels.read(_file(tmp_path, json.dumps(LINES))) == READ
    header = '\ufeffquestion,variant,verdict,turn,who\r\n3,kd,Win,,a\r\n" Count to\r\n3",ours,tie,,b\r\n'
    assert labels.read(_file(tmp_path, header + "3,theirs,win\r\n81,sft,7.5,\r\n81,ours,10,2\r\n")) == READ


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no labels"),
        ("[]", "holds no labels"),
        ("question,variant,verdict\n", "holds no labels"),
        ("question;variant;verdict\n1;kd;win\n", "row 1: no `question`"),
        ('question,variant,verdict\n1,kd,"win\n', "neither JSON nor CSV"),
        ('{"question": 1', "neither a JSON list nor JSON lines"),
        ('{"question": 1, "variant": "kd"}', "entry 1: no `verdict`"),
        ('{"question": 1, "variant": "kd", "verdict": "good"}', "win, tie, loss or a score from 1 to 10, not 'good'"),
        ('{"question": 1, "variant": "kd", "verdict": 0}', "a score from 1 to 10, not '0'"),
        ('{"question": 1, "variant": "kd", "verdict": "nan"}', "a score from 1 to 10, not 'nan'"),
        ('{"question": 1, "variant": "kd", "verdict": true}', "`verdict` should be a text or a number"),
        ('{"question": ["x"], "variant": "kd", "verdict": 1}', "`question` should be a text or a number"),
        ('{"question": 1, "variant": "theirs", "verdict": 5}', "a score is of a variant's answer"),
        ('{"question": 1, "variant": "kd", "verdict": "win", "turn": 1}', "`turn` goes with a score"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_file_is_told_by_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        labels.read(_file(tmp_path, text))


def test_labels_of_nothing_that_will_be_judged_are_refused_before_anything_is_spent(tmp_path: Path) -> None:
    options = Benchmarks(alpaca_eval="demo", max_questions=3)
    asked = artifacts.load("alpaca_eval", options)
    good = {"question": asked[1].turns[0], "variant": "ours", "verdict": "loss"}
    artifacts.preflight(options, "demo", _file(tmp_path, json.dumps([good])), VARIANTS)
    for change in ({"question": "3"}, {"variant": "gpt4"}, {"verdict": 5}):
        with pytest.raises(ConfigurationError, match="none of its 1 labels is on an answer that will be judged"):
            artifacts.preflight(options, "demo", _file(tmp_path, json.dumps([good | change])), VARIANTS)
    with pytest.raises(ConfigurationError, match=r"set benchmarks\.alpaca_eval or benchmarks\.mt_bench"):
        artifacts.preflight(Benchmarks(), "demo", _file(tmp_path, json.dumps([good])), VARIANTS)
    with pytest.raises(ConfigurationError, match="there is no file '/nowhere'"):
        artifacts.preflight(options, "demo", "/nowhere", VARIANTS)


def test_labels_are_no_part_of_what_was_judged() -> None:
    assert Judging(labels="labels.jsonl").identity() == Judging().identity()


def test_a_pair_that_the_judge_decides_by_its_order_is_its_tie() -> None:
    def judged(item: str, reference_first: float, model_first: float) -> list[Judgment]:
        return [Judgment(item, "reference first", reference_first), Judgment(item, "model first", model_first)]

    made = [*judged("win", 0.9, 0.2), *judged("loss", 0.3, 0.6), *judged("order", 0.9, 0.8), *judged("even", 0.5, 0.5)]
    assert alpaca_eval.outcomes([*made, Judgment("half", "model first", 1.0)]) == {
        "win": 1.0,
        "loss": -1.0,
        "order": 0.0,
        "even": 0.0,
    }


def _pairs(judged: dict[str, float], judge: str = "openai/judge") -> Judged:
    return Judged(judge, PAIRS, {(item, ""): JudgeVerdict(value, value) for item, value in judged.items()})


def _beside(given: list[Label], **judged: Judged) -> BesidePeople:
    return beside_people(given, {"alpaca_eval": judged, "mt_bench": {}})


def test_labels_are_matched_by_id_or_text_and_the_others_counted_by_reason() -> None:
    kd = _pairs({str(n): float(n % 2) for n in range(10)})
    given = [_label(str(n), float(n % 2)) for n in range(8)] + [_label(f"Count to {n}", 1.0) for n in (8, 9)]
    lost = [
        _label("77", 1.0),
        _label("Twice", 1.0),
        _label("1", 1.0, "gpt4"),
        _label("12", 1.0),
        _label("1", 5.0, benchmark="mt_bench"),
    ]
    found = _beside(given + lost, kd=kd)
    assert (found.labels, found.matched) == (15, 10)
    assert found.not_matched == {
        "no such question in AlpacaEval": 1,
        "several questions of AlpacaEval have that text (name the id)": 1,
        "no such variant in AlpacaEval": 1,
        "the judge of AlpacaEval gave no verdict": 1,
        "MT-Bench was not run": 1,
    }
    (one,) = found.judges
    assert (one.agreement.labels, one.agreement.share.estimate) == (10, 0.9)
    assert one.sentence.startswith("AlpacaEval: openai/judge and people agree on 90.0 % (")
    assert "of 10 labels on 10 questions, more than by chance (Cohen’s κ 0.80 (" in one.sentence
    assert "permutation test of κ over questions, p = 0.0" in one.sentence
    assert found.sentences[1].startswith(
        "Of 15 labels of people, 10 are on answers that a judge judged; 5 are not: 1 × "
    )
    assert BesidePeople.model_validate_json(found.model_dump_json()) == found


def test_agreement_that_chance_explains_is_not_claimed() -> None:
    kd = _pairs({str(n): float(n % 2) for n in range(8)})
    (by_chance,) = _beside([_label(str(n), float(n // 4)) for n in range(8)], kd=kd).judges
    assert ", which is not shown to be more than chance (Cohen’s κ 0.00 (−" in by_chance.sentence
    (same,) = _beside([_label("1", 1.0)], kd=kd).judges
    assert same.sentence.endswith("cannot be told, for one of them says the same throughout.")


def test_scores_are_compared_by_turn_or_over_the_whole_answer() -> None:
    questions = [Question(id=str(n), turns=("a", "b")) for n in range(8)]
    verdicts = {(str(n), turn): JudgeVerdict(n + 1, n + 1) for n in range(8) for turn in ("", "1")}
    judged = {"mt_bench": {"sft": Judged("j", questions, verdicts)}}
    given = [_label(str(n), n + 2.0, "sft", "mt_bench", turn) for n in range(8) for turn in ("", "1", "2")]
    found = beside_people(given, judged)
    assert found.not_matched == {"the judge of MT-Bench gave no verdict": 8}
    (one,) = found.judges
    assert (one.agreement.labels, one.agreement.questions) == (16, 8)
    assert one.sentence.startswith("MT-Bench: j and people are at most one mark apart on 100.0 % (")
    assert "Cohen’s κ with quadratic weights 0.91" in one.sentence


def test_no_label_matched_leaves_the_account() -> None:
    found = _beside([_label("77", 1.0)], kd=_pairs({"1": 1.0}))
    assert found.sentences == [
        "Of 1 labels of people, 0 are on answers that a judge judged; 1 are not: 1 × no such question in AlpacaEval."
    ]
