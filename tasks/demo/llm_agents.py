"""What the demo LLM answers: the agents' requests, played by rule for the SQL demo domain.

This is not a language model. It parses the few hundred phrasings of the demo domain and writes SQL from
templates, with the mistakes of `noise`, judged by equally fallible rules. An instruction from outside the
domain gets a harmless answer in the same JSON shape. Every choice is drawn from a generator seeded by the
request, so a rerun of a pipeline gets the same answers in any order. Pairings that the held-out split keeps
back are never written here.
"""

import random
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from infra.sandbox.sql import QueryError
from tasks.demo.execution import opened
from tasks.demo.noise import break_sql, wrong_request
from tasks.demo.parse import parse
from tasks.demo.requests import (
    CATEGORY_OF_FAMILY,
    TASK_CATEGORIES,
    SqlRequest,
    combinations,
    is_held_out,
    phrase,
    sample_request,
)
from tasks.demo.schemas import Database, SqlTable, database_of_schema, schema_text
from tasks.demo.styles import render_sql, sample_style

BROKEN_RATE = 0.06
WRONG_RATE = 0.2
EXPANSION_WRONG_RATE = 0.3  # what Expansion answers in passing is worse than what Rewriting writes
DRIFT_RATE = 0.05
# How often each agent is right about an answer, by what the answer is.
DRIFT_SEEN_BY_CATEGORY = 0.9
CHANGE_SEEN_BY_PRESERVATION = 0.15
BROKEN_SEEN_BY_SELECTION = 0.8
WRONG_SEEN_BY_SELECTION = 0.15
BROKEN_SEEN_BY_VERIFICATION = 0.95
WRONG_SEEN_BY_VERIFICATION = 0.4
RIGHT_DOUBTED_BY_VERIFICATION = 0.02

_COMPLEXITY_OF_CATEGORY = dict(zip(TASK_CATEGORIES, (6, 6, 8, 7, 9), strict=True))

Body = Mapping[str, Any]
AgentReply = dict[str, Any]


class BadAgentRequestError(ValueError):
    """The user message is not a request that an agent would send."""


def _text(body: Body, field: str) -> str:
    value = body.get(field, "")
    if not isinstance(value, str):
        raise BadAgentRequestError(f"field {field!r} must be a string")
    return value


def _understood(body: Body) -> tuple[SqlRequest, Database] | None:
    """The request and its database, or None when it is not for us: another domain, or a held-out pairing."""
    database = database_of_schema(_text(body, "input"))
    request = parse(_text(body, "instruction"), database) if database else None
    if database is None or request is None or is_held_out(request.table, request.family):
        return None
    return request, database


@cache
def _training_combinations(category: str) -> list[tuple[Database, SqlTable, str]]:
    return combinations(held_out=False, category=category if category in TASK_CATEGORIES else None)


def expand(body: Body, rng: random.Random) -> AgentReply:
    """New requests of the same task category, usually about another table."""
    n = body.get("n", 1)
    if not isinstance(n, int) or not 1 <= n <= 100:
        raise BadAgentRequestError("field 'n' must be an integer from 1 to 100")
    category = _text(body, "task_category")
    if database_of_schema(_text(body, "input")) is None and category not in TASK_CATEGORIES:
        same = {name: _text(body, name) for name in ("instruction", "input", "response")}
        return {"instructions": [same] * n}
    others = [name for name in TASK_CATEGORIES if name != category]
    written = []
    for _ in range(n):
        of = rng.choice(others) if rng.random() < DRIFT_RATE else category
        database, table, family = rng.choice(_training_combinations(of))
        request = sample_request(database, table, family, rng)
        response = _written(request, database, EXPANSION_WRONG_RATE, rng)
        instruction = phrase(request, database, rng)
        written.append({"instruction": instruction, "input": schema_text(database), "response": response})
    return {"instructions": written}


def check_categories(body: Body, rng: random.Random) -> AgentReply:
    """Whether each candidate is a request of the category; a request of another one is mostly noticed."""
    category, candidates = _text(body, "task_category"), body.get("candidates")
    if not isinstance(candidates, list) or not all(isinstance(one, dict) for one in candidates):
        raise BadAgentRequestError("field 'candidates' must be a list of objects")
    verdicts = []
    for candidate in candidates:
        understood = _understood(candidate)
        is_of = CATEGORY_OF_FAMILY[understood[0].family] if understood else category
        seen = category in TASK_CATEGORIES and is_of != category and rng.random() < DRIFT_SEEN_BY_CATEGORY
        verdicts.append({"same_category": not seen, "category": is_of if seen else category})
    return {"verdicts": verdicts}


def _written(request: SqlRequest, database: Database, wrong_rate: float, rng: random.Random) -> str:
    """SQL in a style of its own, sometimes with a mistake."""
    mistake = rng.random()
    answered = request if mistake >= wrong_rate else wrong_request(request, database, rng)
    sql = render_sql(answered, database, sample_style(rng))
    return break_sql(sql, rng) if wrong_rate <= mistake < wrong_rate + BROKEN_RATE else sql


def rewrite(body: Body, rng: random.Random) -> AgentReply:
    """A new answer in a style of its own, sometimes with a mistake; now and then the instruction in other words.

    SQL completion wants SQL only, so `chain_of_thought` changes nothing in this domain.
    """
    understood = _understood(body)
    difficulty = {"difficulty": "easy"} if body.get("chain_of_thought") is True else {}
    if understood is None:
        return {**difficulty, "instruction": _text(body, "instruction"), "response": _text(body, "response")}
    request, database = understood
    instruction = phrase(request, database, rng) if rng.random() < 0.3 else _text(body, "instruction")
    return {**difficulty, "instruction": instruction, "response": _written(request, database, WRONG_RATE, rng)}


def check_preservation(body: Body, rng: random.Random) -> AgentReply:
    """Compares what both queries return; a new answer that is wrong is noticed now and then."""
    after = body.get("rewritten")
    if not isinstance(after, dict):
        raise BadAgentRequestError("field 'rewritten' must be an object")
    understood = _understood(body)
    if understood is None:
        return {"instruction": "same", "answer": "same", "reason": "nothing speaks against it"}
    request, database = understood
    before, response = _text(body, "response"), _text(after, "response")
    if not _runs(database, response):
        changed = rng.random() < BROKEN_SEEN_BY_SELECTION
        return {"instruction": "same", "answer": "changed" if changed else "corrected", "reason": "another answer"}
    if _runs(database, before) and opened(database).same_result(before, response):
        return {"instruction": "same", "answer": "same", "reason": "both return the same rows"}
    wrong = not opened(database).same_result(render_sql(request, database), response)
    changed = wrong and rng.random() < CHANGE_SEEN_BY_PRESERVATION
    reason = "the new SQL misses the request" if changed else "the new SQL fits the request better"
    return {"instruction": "same", "answer": "changed" if changed else "corrected", "reason": reason}


def _runs(database: Database, sql: str) -> bool:
    try:
        opened(database).run(sql)
    except QueryError:
        return False
    return True


def select(body: Body, rng: random.Random) -> AgentReply:
    """Scores from 1 to 10: harder kinds of request are more informative, bad SQL helps nobody."""
    understood = _understood(body)
    if understood is None:
        return {"informativeness": 6, "helpfulness": 6, "generality": 6, "reason": "nothing speaks against it"}
    request, database = understood
    response = _text(body, "response")
    complexity = _COMPLEXITY_OF_CATEGORY[CATEGORY_OF_FAMILY[request.family]]
    informativeness = complexity + rng.choice((-1, 0, 1))
    generality = 6 + rng.randrange(4)
    if not _runs(database, response):
        seen, reason = rng.random() < BROKEN_SEEN_BY_SELECTION, "the SQL does not run"
    else:
        wrong = not opened(database).same_result(render_sql(request, database), response)
        seen, reason = wrong and rng.random() < WRONG_SEEN_BY_SELECTION, "the SQL seems to miss the request"
    helpfulness = rng.randrange(1, 4) if seen else rng.randrange(7, 11)
    return {
        "informativeness": informativeness,
        "helpfulness": helpfulness,
        "generality": generality,
        "reason": reason if seen else "a clear request with fitting SQL",
    }


def verify(body: Body, rng: random.Random) -> AgentReply:
    """Both queries run on the database; an LLM would not see every mistake, so this one does not either."""
    understood = _understood(body)
    if understood is None:
        return {"correct": True, "evidence": "not checked", "tests": []}
    request, database = understood
    response = _text(body, "response")
    if not _runs(database, response):
        if rng.random() < BROKEN_SEEN_BY_VERIFICATION:
            return {"correct": False, "evidence": "the SQL does not run on this schema", "tests": []}
    elif not opened(database).same_result(render_sql(request, database), response):
        if rng.random() < WRONG_SEEN_BY_VERIFICATION:
            return {"correct": False, "evidence": "the SQL returns other rows than the request asks for", "tests": []}
    elif rng.random() < RIGHT_DOUBTED_BY_VERIFICATION:
        return {"correct": False, "evidence": "the SQL may not answer the request", "tests": []}
    return {"correct": True, "evidence": "the SQL answers the request", "tests": []}


def compare(body: Body, rng: random.Random) -> AgentReply:
    """As AlpacaEval's judge: the answer whose SQL returns what was asked for; a coin where both do, or neither.

    It compares held-out requests too, and tells nobody their SQL.
    """
    outputs = body.get("outputs")
    if not isinstance(outputs, list) or len(outputs) != 2 or not all(isinstance(one, dict) for one in outputs):
        raise BadAgentRequestError("field 'outputs' must be a list of two objects")
    instruction, _, schema = _text(body, "instruction").rpartition("\n\n")
    database = database_of_schema(schema)
    request = parse(instruction, database) if database else None
    if database is None or request is None:
        raise BadAgentRequestError("this judge is a rule for the demo's SQL requests, and this is none")
    expected = render_sql(request, database)
    first, second = (_returns(database, expected, _text(one, "output")) for one in outputs)
    if first == second:
        reason = (
            f"{'both' if first else 'neither'} of the queries {'return' if first else 'returns'} what was asked for"
        )
        return {"reason": f"{reason}: a coin decides", "better": rng.choice("mM")}
    return {"reason": "its query alone returns what was asked for", "better": "m" if first else "M"}


def _returns(database: Database, expected: str, sql: str) -> bool:
    return _runs(database, sql) and opened(database).same_result(expected, sql)


def name(body: Body, _rng: random.Random) -> AgentReply:
    """All that is asked here is SQL."""
    seeds, categories = body.get("seeds"), body.get("categories")
    if not isinstance(seeds, list) or not isinstance(categories, dict) or not categories:
        raise BadAgentRequestError("fields 'seeds' and 'categories' must be a list and an object")
    named = next((category for category in categories if "SQL" in category), next(iter(categories)))
    return {"categories": [named] * len(seeds)}


def compare_pairs(body: Body, _rng: random.Random) -> AgentReply:
    """Two requests are the same where both are understood as one."""
    pairs = body.get("pairs")
    if not isinstance(pairs, list) or not all(isinstance(one, dict) for pair in pairs for one in pair.values()):
        raise BadAgentRequestError("field 'pairs' must be a list of pairs of objects")
    verdicts = []
    for pair in pairs:
        first, second = (_request(_text(pair[name], "asked")) for name in ("first", "second"))
        same = first is not None and first == second
        verdicts.append({"difference": "" if same else "they ask for different rows", "same": same})
    return {"verdicts": verdicts}


def _request(asked: str) -> SqlRequest | None:
    instruction, _, schema = asked.rpartition("\n\n")
    database = database_of_schema(schema)
    return parse(instruction, database) if database else None


_AGENTS: dict[str, Callable[[Body, random.Random], AgentReply]] = {
    "naming": name,
    "expansion": expand,
    "category": check_categories,
    "comparison": compare_pairs,
    "preservation": check_preservation,
    "rewriting": rewrite,
    "selection": select,
    "verification": verify,
    "alpaca_eval": compare,
}


def answer(body: object, seed: str) -> AgentReply:
    """The JSON object that the demo LLM replies with. `seed` decides every free choice.

    Raises BadAgentRequestError, with a message for the caller, if the body is not an agent's request.
    """
    if not isinstance(body, dict):
        raise BadAgentRequestError("the last user message must be one JSON object")
    agent = _AGENTS.get(body.get("agent", ""))
    if agent is None:
        raise BadAgentRequestError(f"field 'agent' must be one of {sorted(_AGENTS)}")
    return agent(body, random.Random(seed))
