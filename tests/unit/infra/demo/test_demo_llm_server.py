"""The demo LLM server over real HTTP: the agents' contract, determinism, errors, and the held-out promise."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tasks.demo.build_data import distinct_rows
from tasks.demo.execution import opened
from tasks.demo.llm_agents import answer
from tasks.demo.llm_server import MODEL_NAME, serving
from tasks.demo.parse import parse
from tasks.demo.requests import CATEGORY_OF_FAMILY, TASK_CATEGORIES, SqlRequest, is_held_out
from tasks.demo.schemas import DATABASES, Database, database_of_schema, schema_text
from tasks.demo.styles import render_sql

SCHEMA = schema_text(DATABASES[0])
QUESTION = {"task_category": "sql-aggregate", "instruction": "How many employees are there?", "input": SCHEMA}
OUTSIDE = {"task_category": "poetry", "instruction": "Write a haiku about rain.", "input": ""}

Session = aiohttp.ClientSession


def with_server(use: Callable[[Session, str], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with serving() as url, aiohttp.ClientSession() as session:
            return await use(session, url)

    return asyncio.run(run())


async def post(session: Session, url: str, payload: object) -> tuple[int, dict[str, Any]]:
    async with session.post(f"{url}/chat/completions", json=payload) as response:
        return response.status, await response.json()


def chat(body: object, model: str = MODEL_NAME) -> dict[str, Any]:
    content = body if isinstance(body, str) else json.dumps(body)
    system = {"role": "system", "content": "You are an agent."}
    return {"model": model, "messages": [system, {"role": "user", "content": content}], "temperature": 0.7}


def ask(body: object) -> dict[str, Any]:
    status, completion = with_server(lambda session, url: post(session, url, chat(body)))
    assert status == 200, completion
    usage = completion["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    assert completion["choices"][0]["finish_reason"] == "stop"
    return json.loads(completion["choices"][0]["message"]["content"])


def parsed(instruction: str, schema: str) -> tuple[SqlRequest, Database]:
    """What is asked for, and of which database."""
    database = database_of_schema(schema)
    assert database is not None
    request = parse(instruction, database)
    assert request is not None
    return request, database


def test_expansion_writes_n_requests_of_the_same_category() -> None:
    written = ask({"agent": "expansion", "n": 12, **QUESTION})["instructions"]
    assert len(written) == 12
    assert len({row["instruction"] for row in written}) > 8
    for row in written:
        request, _ = parsed(row["instruction"], row["input"])
        assert CATEGORY_OF_FAMILY[request.family] == "sql-aggregate"


def test_rewriting_answers_in_sql_only_even_when_asked_for_a_chain_of_thought() -> None:
    written = ask({"agent": "rewriting", "response": "", "chain_of_thought": True, **QUESTION})
    assert set(written) == {"difficulty", "instruction", "response"}
    assert "select" in written["response"].lower()
    assert "\n" not in written["response"]


def test_a_comparison_is_of_what_is_requested() -> None:
    asked = f"{QUESTION['instruction']}\n\n{QUESTION['input']}"
    pairs = [{"first": {"asked": asked}, "second": {"asked": other}} for other in (asked, asked.replace("?", " not"))]
    assert [one["same"] for one in ask({"agent": "comparison", "pairs": pairs})["verdicts"]] == [True, False]


def test_selection_scores_from_one_to_ten() -> None:
    scores = ask({"agent": "selection", "response": "SELECT COUNT(*) FROM employees", **QUESTION})
    assert all(1 <= scores[name] <= 10 for name in ("informativeness", "helpfulness", "generality"))
    assert scores["reason"]


def test_verification_gives_a_verdict_with_evidence() -> None:
    verdict = ask({"agent": "verification", "response": "SELECT COUNT(*) FROM employees", **QUESTION})
    assert isinstance(verdict["correct"], bool)
    assert verdict["evidence"]


def test_another_domain_gets_a_harmless_answer_in_the_same_shape() -> None:
    assert ask({"agent": "rewriting", "response": "Rain.", "chain_of_thought": False, **OUTSIDE}) == {
        "instruction": OUTSIDE["instruction"],
        "response": "Rain.",
    }
    assert ask({"agent": "verification", "response": "Rain.", **OUTSIDE}) == {
        "correct": True,
        "evidence": "not checked",
        "tests": [],
    }
    assert 4 <= ask({"agent": "selection", "response": "Rain.", **OUTSIDE})["helpfulness"] <= 7
    assert len(ask({"agent": "expansion", "n": 3, **OUTSIDE})["instructions"]) == 3


def test_the_same_messages_get_the_same_answer_from_two_servers_in_any_order() -> None:
    bodies = [{"agent": "expansion", "n": 3, **QUESTION, "round": turn} for turn in range(20)]

    async def contents(session: Session, url: str, order: list[dict[str, Any]]) -> dict[int, str]:
        replies = await asyncio.gather(*(post(session, url, chat(body)) for body in order))
        return {b["round"]: r["choices"][0]["message"]["content"] for b, (_, r) in zip(order, replies, strict=True)}

    first = with_server(lambda session, url: contents(session, url, bodies))
    second = with_server(lambda session, url: contents(session, url, bodies[::-1]))
    assert first == second
    assert len(set(first.values())) == 20


@pytest.mark.parametrize(
    ("payload", "status", "message"),
    [
        (chat("no json"), 400, "one JSON object"),
        (chat([1]), 400, "one JSON object"),
        (chat({"agent": "poet"}), 400, "'agent' must be one of"),
        (chat({"agent": "expansion", "n": 0, **QUESTION}), 400, "'n' must be"),
        (chat({"agent": "selection", **QUESTION, "instruction": 7}), 400, "'instruction' must be a string"),
        (chat({"agent": "expansion", "n": 1, **QUESTION}, model="gpt-4o"), 404, "does not exist"),
        ({"model": MODEL_NAME}, 400, "messages"),
        ({"model": MODEL_NAME, "messages": [{"role": "system", "content": "x"}]}, 400, "user message"),
        (chat({"agent": "expansion", "n": 1, **QUESTION}) | {"stream": True}, 400, "stream"),
        ([], 400, "messages"),
    ],
)
def test_a_bad_request_gets_an_openai_style_error(payload: object, status: int, message: str) -> None:
    got, body = with_server(lambda session, url: post(session, url, payload))
    assert got == status
    assert message in body["error"]["message"]
    assert body["error"]["type"].endswith("_error")


def test_a_body_that_is_not_json_gets_an_openai_style_error() -> None:
    async def use(session: Session, url: str) -> tuple[int, dict[str, Any]]:
        async with session.post(f"{url}/chat/completions", data=b"{") as response:
            return response.status, await response.json()

    status, body = with_server(use)
    assert status == 400
    assert "not JSON" in body["error"]["message"]


def test_models_and_health_say_that_this_is_no_language_model() -> None:
    async def use(session: Session, url: str) -> tuple[dict[str, Any], dict[str, Any]]:
        async with session.get(f"{url}/models") as models, session.get(url.replace("/v1", "/health")) as health:
            return await models.json(), await health.json()

    models, health = with_server(use)
    assert [model["id"] for model in models["data"]] == [MODEL_NAME]
    assert "not a language model" in models["data"][0]["owned_by"]
    assert health["status"] == "ok"


def test_expansion_never_writes_a_held_out_pairing() -> None:
    for category in (*TASK_CATEGORIES, "something else"):
        for turn in range(20):
            body = {"agent": "expansion", "n": 50, **QUESTION, "task_category": category}
            for row in answer(body, str(turn))["instructions"]:
                request, _ = parsed(row["instruction"], row["input"])
                assert not is_held_out(request.table, request.family)


def test_rewriting_does_not_answer_a_held_out_request() -> None:
    for row in distinct_rows(60, held_out=True, seed="server"):
        body = {"agent": "rewriting", "response": "as it was", "task_category": row["category"], **row}
        assert answer(body, "0") == {"instruction": row["instruction"], "response": "as it was"}


def test_some_labels_are_wrong_and_the_judges_see_only_part_of_it() -> None:
    kept_right, kept_wrong, dropped_wrong = 0, 0, 0
    for index, row in enumerate(distinct_rows(600, held_out=False, seed="noise")):
        body = {"task_category": row["category"], "instruction": row["instruction"], "input": row["input"]}
        written = answer({"agent": "rewriting", "response": "", "chain_of_thought": False, **body}, f"r{index}")
        request, database = parsed(written["instruction"], row["input"])
        right = opened(database).same_result(render_sql(request, database), written["response"])
        judged = body | {"instruction": written["instruction"], "response": written["response"]}
        kept = (
            answer({"agent": "verification", **judged}, f"v{index}")["correct"]
            and answer({"agent": "selection", **judged}, f"s{index}")["helpfulness"] >= 4
        )
        kept_right += right and kept
        kept_wrong += not right and kept
        dropped_wrong += not right and not kept
    assert 0.08 < kept_wrong / (kept_wrong + kept_right) < 0.25
    assert dropped_wrong > kept_wrong


def _compared(first: str, second: str, instruction: str = "How many employees are there?") -> dict[str, Any]:
    outputs = [{"model_identifier": name, "output": text} for name, text in (("m", first), ("M", second))]
    return ask({"agent": "alpaca_eval", "instruction": f"{instruction}\n\n{SCHEMA}", "outputs": outputs})


def test_as_a_judge_it_prefers_the_query_that_returns_what_was_asked_for_in_both_orders() -> None:
    right, wrong = "select count(id) from employees", "SELECT COUNT(*) FROM departments"
    assert _compared(right, wrong)["better"] == "m"
    assert _compared(wrong, right)["better"] == "M"
    assert _compared(wrong + " and", right)["better"] == "M"


def test_as_a_judge_it_tosses_a_coin_between_equals() -> None:
    right = "SELECT COUNT(*) FROM employees"
    tossed = [_compared(right, right + " " * n)["better"] for n in range(40)]
    assert 10 < tossed.count("m") < 30
    assert "a coin decides" in _compared(right, right)["reason"]


def test_as_a_judge_it_refuses_what_it_cannot_check() -> None:
    outputs = [{"model_identifier": name, "output": ""} for name in "mM"]
    body = {"agent": "alpaca_eval", "instruction": "Write a haiku about rain.", "outputs": outputs}
    status, told = with_server(lambda session, url: post(session, url, chat(body)))
    assert status == 400
    assert "this judge is a rule" in told["error"]["message"]
