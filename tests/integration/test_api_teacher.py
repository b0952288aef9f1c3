"""A teacher behind an API: its answers with their log-probs become the store that its weights would make of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import ConfigurationError
from infra.store.artifacts import ArtifactRef, Workspace, facts_of
from tasks.engines.scoring import TransformersEngine
from tasks.llm.protocol import LLMEndpoint
from tasks.logits.api import stage
from tasks.logits.api.settings import TeacherCalls
from tasks.logits.api.stage import AskTeacher
from tasks.logits.api.stored import StoreAnswers
from tasks.logits.settings import Scoring
from tasks.logits.store.reader import TopKReader
from tasks.models import load_tokenizer, resolve
from tasks.rows import KEPT, REJECTED, read_rows, to_parquet
from tasks.tokens.alignment import known_tokens, remap, vocabulary_of
from tasks.tokens.rows import TokenisedRow, tokenise
from tasks.train.data.examples import Examples
from tasks.train.settings import Distillation
from tests.support.other_tokenizer import shuffled_ids
from tests.support.program import start, told
from tests.support.stages import made
from tests.support.teacher_api import TeacherAPI, serving
from tests.support.wait import wait_for

K = 10
ROWS = 16
CALLS = {"temperature": 0.0, "max_output_tokens": 120, "usd_per_million_tokens": (1.0, 2.0)}


@pytest.fixture(scope="module")
def api() -> TeacherAPI:
    return TeacherAPI(resolve("demo", "teacher"))


@pytest.fixture(scope="module")
def url(api: TeacherAPI) -> Iterator[str]:
    with serving(api) as address:
        yield address


@pytest.fixture(scope="module")
def some(rows: ArtifactRef) -> ArtifactRef:
    """A few of the demo's rows, one of them twice."""
    work = Workspace("augment", 1, {"some": ROWS}, {"rows": rows})
    chosen = [row for _number, row in zip(range(ROWS), read_rows(rows, KEPT), strict=False)]
    work.put(f"{KEPT}0.parquet", to_parquet([*chosen, chosen[0].model_copy(update={"response": "another"})]))
    return work.publish((KEPT,), {"rows": ROWS + 1}, {})


def _asked(url: str, rows: ArtifactRef, style: str, k: int = K, **calls: Any) -> ArtifactRef:
    """The teacher's answers, as a provider of that style tells them."""
    chosen = TeacherCalls(**{**CALLS, **calls, "api_base": url})
    work = AskTeacher(rows=rows, model=f"openai/{style}", k=k, calls=chosen).workspace()
    return work.find() or stage.ask(work, rows, k, chosen, LLMEndpoint(f"openai/{style}", url, "key"))


def _store(answers: ArtifactRef, style: str) -> ArtifactRef:
    scoring = Scoring(engine="api", tokens_per_shard=500)
    return made(StoreAnswers(answers=answers, model=f"openai/{style}", k=K, scoring=scoring))


@pytest.mark.parametrize("style", ["told", "ended", "textual"])
def test_a_student_gets_what_the_teachers_weights_say_of_the_same_answers(
    url: str, some: ArtifactRef, style: str
) -> None:
    answers = _asked(url, some, style)
    store = _store(answers, style)
    student, teacher = resolve("demo", "student"), resolve("demo", "teacher")
    stream = Examples(store, student, 384, Distillation())
    examples = {example.row_id: example for example in stream}
    moved = stream.facts()["alignment"]
    assert moved["rows_with_other_text"] == 0
    assert moved["positions"] > 0.9
    assert answers.counts["rows"] == store.counts["rows"] == len(examples) > ROWS / 2
    tokenizer = load_tokenizer(teacher)
    rows = [tokenise(row, tokenizer, 384) for row in read_rows(answers, KEPT)]
    by_weights = TransformersEngine(teacher.fetch()).score([row for row in rows if isinstance(row, TokenisedRow)], K)
    known = known_tokens(vocabulary_of(student), student.config()["vocab_size"])
    ends = compared = 0
    for row in by_weights:
        example = examples[row.row_id]
        assert list(example.ids) == list(row.ids)
        assert example.teacher_logprobs_RK is not None
        assert example.teacher_ids_RK is not None
        expected = [
            _of(ids, values) for ids, values in zip(*remap(row.topk_ids_RK, row.logprobs_RK, known), strict=True)
        ]
        found = [_of(*told) for told in zip(example.teacher_ids_RK, example.teacher_logprobs_RK, strict=True)]
        ends += bool(found[-1])
        end = row.ids[-1]
        for got, wanted in zip(found, expected, strict=True):
            if not got:
                continue
            if style != "ended":  # nobody tells which alternative would be the end
                wanted.pop(end, None)
            assert got.keys() == wanted.keys()
            np.testing.assert_allclose(list(got.values()), [wanted[token] for token in got], atol=1 / 128 + 1e-3)
            compared += 1
    assert compared > 0.9 * sum(len(example.ids) - example.response_start for example in examples.values())
    assert ends == (len(examples) if style == "ended" else 0)
    assert facts_of(store)["ends_told"] == ends


def _of(ids_K: Any, logprobs_K: Any) -> dict[int, float]:
    return {int(token): float(value) for token, value in zip(ids_K, logprobs_K, strict=True) if np.isfinite(value)}


def test_a_student_with_another_tokenizer_reads_the_same_store(url: str, some: ArtifactRef, tmp_path: Path) -> None:
    store = _store(_asked(url, some, "ended"), "ended")
    student = resolve("demo", "student")
    other = shuffled_ids(student, tmp_path / "other")
    same, moved = (list(Examples(store, one, 384, Distillation())) for one in (student, other))
    texts = [vocabulary_of(one).text for one in (student, other)]
    assert len(same) == len(moved) > 0
    for one, another in zip(same, moved, strict=True):
        assert one.teacher_ids_RK is not None
        assert another.teacher_ids_RK is not None
        np.testing.assert_array_equal(one.teacher_logprobs_RK, another.teacher_logprobs_RK)
        assert one.teacher_logprobs_RK is not None
        known = np.isfinite(one.teacher_logprobs_RK)
        spelled = [
            [text[i] for i in ids[known]]
            for text, ids in zip(texts, (one.teacher_ids_RK, another.teacher_ids_RK), strict=True)
        ]
        assert spelled[0] == spelled[1]


def test_answers_are_the_teachers_own_and_each_prompt_is_asked_once(
    api: TeacherAPI, url: str, some: ArtifactRef
) -> None:
    api.asked.clear()
    answers = _asked(url, some, "told")
    again = _asked(url, some, "told", concurrency=2)
    assert again == answers
    assert set(api.asked.values()) <= {1}
    rows, before = list(read_rows(answers, KEPT)), {row.instruction: row for row in read_rows(some, KEPT)}
    assert all(row.prompt == before[row.instruction].prompt for row in rows)
    assert [row.row_id for row in TopKReader(_store(answers, "told"))] == [row.id for row in rows]
    facts = facts_of(answers)
    assert facts["left_out"]["asks what another row asks"] == 1
    used = facts["usage"]["teacher"]
    assert used["requests"] == ROWS + 1  # with the probe
    assert used["cost_usd"] == pytest.approx((used["prompt_tokens"] + 2 * used["completion_tokens"]) / 1e6)


@pytest.mark.parametrize(
    ("style", "words"),
    [
        ("untold", "came without log-probs"),
        ("nan", "has log-probs that are none"),
        ("positive", "has log-probs that are none"),
        ("unspelled", "has tokens that do not spell it"),
        ("constant", "it tells 0 and -9999 in place of log-probs"),
        ("badbytes", "has tokens that do not spell it"),
    ],
)
def test_a_provider_that_tells_nothing_of_use_costs_one_question(
    api: TeacherAPI, url: str, some: ArtifactRef, style: str, words: str
) -> None:
    api.asked.clear()
    with pytest.raises(ConfigurationError, match=f"teacher=openai/{style} cannot be learned from.*{words}.*choose"):
        _asked(url, some, style)
    assert api.asked.total() <= 1


def test_answers_that_are_told_badly_end_the_stage_after_a_dozen(api: TeacherAPI, url: str, some: ArtifactRef) -> None:
    api.asked.clear()
    with pytest.raises(
        ConfigurationError, match=r"to the rows are of no use \(0 of use, has tokens that do not spell it"
    ):
        _asked(url, some, "later")
    assert api.asked.total() <= 1 + 12


def test_more_alternatives_than_a_provider_tells_are_refused_at_the_first_question(some: ArtifactRef) -> None:
    api = TeacherAPI(resolve("demo", "teacher"), max_alternatives=5)
    with serving(api) as url, pytest.raises(ConfigurationError, match=r"top_logprobs=10, .*at most 5.*lower k"):
        _asked(url, some, "told", max_output_tokens=119)
    assert not api.asked


def test_answers_that_are_cut_off_are_left_out_and_counted(url: str, some: ArtifactRef) -> None:
    answers = _asked(url, some, "told", max_output_tokens=12)
    left_out = facts_of(answers)["left_out"]
    assert left_out["cut off at max_output_tokens"] > 0
    assert answers.counts["rows"] + sum(left_out.values()) == ROWS + 1
    assert len(list(read_rows(answers, REJECTED))) == left_out["cut off at max_output_tokens"]


def test_a_killed_stage_pays_for_nothing_twice(api: TeacherAPI, url: str, some: ArtifactRef, tmp_path: Path) -> None:
    given = {"url": url, "rows": some.model_dump(), "calls": {**CALLS, "max_output_tokens": 119, "concurrency": 4}}
    home = {"DISTILFLOW_HOME": str(tmp_path)}
    api.asked.clear()
    api.delay_s = 0.1
    try:
        process = start("tests.support.asking", given, **home)
        wait_for(lambda: api.asked.total() > ROWS / 2, 200, alive=[process], every_s=0.02)
        process.kill()
        process.communicate(timeout=30)
        wait_for(lambda: len(api.asked) >= api.asked.total(), 5)
        before = api.asked.total()
        ref = ArtifactRef.model_validate(told(start("tests.support.asking", given, **home))["ref"])
    finally:
        api.delay_s = 0.0
    assert 0 < before < ROWS + 1
    assert len(api.asked) == ROWS + 1
    assert api.asked.total() - len(api.asked) <= 4, "more was asked again than was in flight"
    assert facts_of(ref)["usage"]["teacher"]["from_cache"] > 0
