"""Judges over HTTP with known preferences: rates come out as computed by hand, biases and faults are told."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.store import storage
from infra.store.artifacts import Workspace
from tasks.evaluate.benchmarks import artifacts
from tasks.report import benchmarks
from tests.support.endpoint import endpoint, tell
from tests.support.judging import alpaca_eval, answer, score, some_pairs

LONG, SHORT = "a longer answer " * 10, "short"


@pytest.fixture(autouse=True)
def own_home(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / "home"))


def _alpaca(folder: Path, pairs: list[tuple[str, str]], judging: dict[str, Any] | None = None, **how: Any) -> Any:
    options, answers = alpaca_eval(folder, pairs)
    with endpoint(**how) as url:
        ref = score(url, answers, "alpaca_eval", options, judging or {})
        return artifacts.result_of(ref), ref, tell(url, "stats")


def test_an_honest_judge_gives_the_win_rate_and_both_orders_are_asked(tmp_path: Path) -> None:
    result, ref, asked = _alpaca(tmp_path, some_pairs(30))
    assert result["win_rate"] == pytest.approx(20 / 30)
    assert asked["requests"] == asked["distinct"] == 60
    assert result["judged"] == 30
    assert result["not_judged"] == {}
    assert not result["position_bias"]["detected"]
    assert "no position bias" in result["position_bias_sentence"]
    judgments = artifacts.judgments_of(ref)
    assert len(judgments) == 60
    assert {j.reason for j in judgments} == {"Because I am honest."}
    assert artifacts.scores_of(ref) == {str(place): float(place % 3 > 0) for place in range(30)}


def test_a_judge_stands_beside_people_in_the_analysis(tmp_path: Path) -> None:
    """The judge finds the variant better in two of three pairs; people in every pair but those that it loses."""
    _, ref, _ = _alpaca(tmp_path, some_pairs(30))
    labels = tmp_path / "labels.csv"
    rows = [f"{n},ours,{'win' if n % 3 else 'loss'}" for n in range(24)] + ["24,theirs,loss", "25,kd,loss", "99,kd,win"]
    labels.write_text("\n".join(["question,variant,verdict", *rows]))
    found = benchmarks.gather({"kd/alpaca_eval": ref}, {"kd": "SFT+KD"}, str(labels))
    assert found is not None
    assert found.people is not None
    assert (found.people.matched, found.people.not_matched) == (26, {"no such question in AlpacaEval": 1})
    (one,) = found.people.judges
    assert one.judge == "openai/judge"
    assert one.agreement.share.estimate == pytest.approx(24 / 26)  # 24 is the judge's loss, 25 its win
    assert one.agreement.p is not None
    assert one.agreement.p < 0.001


def test_a_judge_that_favours_long_answers_wins_nothing_by_length_once_it_is_controlled(tmp_path: Path) -> None:
    """Longer in 30 of 40 pairs, wins with p = 0.8 where longer: 0.65 raw; the fit is exact, so 0.5 controlled."""
    pairs = [(LONG + str(n), SHORT + str(n)) if n % 4 else (SHORT + str(n), LONG + str(n)) for n in range(40)]
    pairs = [
        (mine.ljust(200, "."), its.ljust(100, ".")) if n % 4 else (mine.ljust(100, "."), its.ljust(200, "."))
        for n, (mine, its) in enumerate(pairs)
    ]
    result, _, _ = _alpaca(tmp_path, pairs, judge="long", confidence=0.8)
    assert result["weighted_by_logprobs"] == 1.0
    assert result["win_rate"] == pytest.approx(0.75 * 0.8 + 0.25 * 0.2)
    assert result["length_controlled"]["win_rate"] == pytest.approx(0.5, abs=1e-3)
    spread = math.sqrt(40 / 39 * (100**2 - 50**2))  # sample deviation of +100 in 10 pairs and −100 in 30
    by_hand = -math.log(0.8 / 0.2) / math.tanh(100 / spread)
    assert result["length_controlled"]["length"] == pytest.approx(by_hand, rel=1e-2)
    assert result["length_control"] == "length_controlled_minimal"


@pytest.mark.parametrize("place", ["first", "second"])
def test_a_judge_that_favours_a_position_is_detected_and_changes_no_win_rate(tmp_path: Path, place: str) -> None:
    pairs = some_pairs(40)[:20] if place == "first" else some_pairs(40)[20:]  # both judges have one name
    result, _, _ = _alpaca(tmp_path, pairs, judge=place)
    bias = result["position_bias"]
    assert result["win_rate"] == 0.5
    assert bias["first"] == (1.0 if place == "first" else 0.0)
    assert bias[f"both_{place}"] == 20
    assert bias["p_value"] == pytest.approx(2 / 2**20)
    assert bias["detected"]
    assert f"favours the {place} position: 20 of 20 pairs" in result["position_bias_sentence"]


def test_without_log_probs_a_preference_is_one_or_nought(tmp_path: Path) -> None:
    pairs = some_pairs(6)
    told, _, _ = _alpaca(tmp_path, pairs, confidence=0.75)
    silent, _, _ = _alpaca(tmp_path, pairs, {"logprobs": False}, confidence=0.75)
    assert told["win_rate"] == pytest.approx((4 * 0.75 + 2 * 0.25) / 6)
    assert (silent["win_rate"], silent["weighted_by_logprobs"]) == (pytest.approx(4 / 6), 0.0)


def test_passing_faults_and_bad_answers_cost_no_pair(tmp_path: Path) -> None:
    faults: dict[str, Any] = {
        "faults": 0.5,
        "faults_of_a_body": 1,
        "kinds": ["429", "500", "cut", "refusal", "truncated", "wrong_schema"],
    }
    result, ref, asked = _alpaca(tmp_path, some_pairs(24), **faults)
    assert set(asked["by_fault"]) == set(faults["kinds"])
    missing = sum(result["not_judged"].values())
    assert missing <= 6, "a correction that was answered badly again"
    assert {j.not_judged for j in artifacts.judgments_of(ref)} <= {"", "no valid answer"}
    judged = artifacts.scores_of(ref)
    assert judged == {item: float(int(item) % 3 > 0) for item in judged}
    assert result["judged"] == len(judged) >= 24 - missing


def test_a_judge_that_refuses_is_told_as_not_judged(tmp_path: Path) -> None:
    result, ref, _ = _alpaca(tmp_path, some_pairs(5), faults=1.0, kinds=["refusal"])
    assert result["not_judged"] == {"no valid answer": 10}
    assert (result["judged"], ref.counts["scored"]) == (0, 0)
    assert "win_rate" not in result


def test_mt_bench_grades_both_turns_with_references_where_they_are_due(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        '{"question_id": 1, "category": "math", "turns": ["one", "two"], "reference": ["1", "2"]}\n'
        '{"question_id": 2, "category": "writing", "turns": ["three", "four"], "reference": ["3", "4"]}\n'
        '{"question_id": 3, "category": "coding", "turns": ["five", "six"]}\n'
    )
    options = artifacts.Benchmarks(mt_bench=str(questions))
    rating = {"one": 2, "two": 4, "three": 8, "four": 10, "five": 1, "six": 5}
    answers = answer("mt_bench", options, lambda turn: f"quality {rating[turn]}")
    with endpoint() as url:
        ref = score(url, answers, "mt_bench", options, {})
    result = artifacts.result_of(ref)
    assert result["rating"] == pytest.approx(30 / 6)
    assert result["by_turn"] == {"1": pytest.approx(11 / 3), "2": pytest.approx(19 / 3)}
    assert result["by_category"] == {"coding": 3.0, "math": 3.0, "writing": 9.0}
    assert result["by_category_and_turn"]["math"] == {"1": 2.0, "2": 4.0}
    assert result["without_reference"] == 2
    references = {(j.item, j.part): j.reason for j in artifacts.judgments_of(ref)}
    assert references[("1", "1")] == "1 references"
    assert references[("1", "2")] == "2 references"
    assert {references[(item, turn)] for item in "23" for turn in "12"} == {"0 references"}
    assert artifacts.scores_of(ref) == {"1": 3.0, "2": 9.0, "3": 3.0}


def test_probes_give_a_rate_of_what_a_variant_said_on_the_heldout_rows(tmp_path: Path) -> None:
    folder = tmp_path / "probes"
    folder.mkdir()
    for name in ("rude", "vague"):
        (folder / f"{name}.jinja").write_text('Is it? Answer {"reason": "…", "present": true or false}')
    said = ["rude", "rude and vague", "kind", "kind too", "vague"]
    texts = {name: [f"{name} {n}" for n in range(5)] for name in ("row_id", "instruction", "input", "reference")}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({**texts, "generated": said}), sink)
    evaluated = Workspace("evaluate", 1, {}, {})
    evaluated.put(artifacts.PREDICTIONS, sink.getvalue().to_pybytes())
    predictions = evaluated.publish((artifacts.PREDICTIONS,), {}, {})
    options = artifacts.Benchmarks(probes=str(folder))
    with endpoint() as url:
        ref = score(url, predictions, "probes", options, {})
    result = artifacts.result_of(ref)["probes"]
    assert {name: (found["present"], found["rate"]) for name, found in result.items()} == {
        "rude": (2, 0.4),
        "vague": (2, 0.4),
    }
    assert sorted(artifacts.scores_of(ref).values()) == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert len(artifacts.judgments_of(ref)) == 10


def test_judged_in_batches_the_verdicts_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their log-probs; the artifact is the same too, so only another home and bucket ask again."""
    pairs = some_pairs(12)
    directly, _, _ = _alpaca(tmp_path, pairs, confidence=0.75)
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / "another"))
    monkeypatch.setenv("DISTILFLOW_BUCKET", "judged-in-batches")
    storage.ensure_bucket()
    in_batches = {"batch": True, "batch_wait_s": 0.1, "batch_poll_s": 0.1}
    result, _, asked = _alpaca(tmp_path, pairs, in_batches, confidence=0.75, batches="plain")
    assert result == directly
    assert [number for _, number in asked["batches"]] == [12, 12]
    assert asked["requests"] == asked["distinct"] == 24
