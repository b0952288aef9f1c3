"""What the test endpoint answers to each agent: by rule, from a hash of the agent's payload."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from typing import Any

from tests.support.judge_answers import is_judge, judged
from tests.support.leaks import QUESTIONS
from tests.support.words import WORDS, listed

DECLINED = "declined"  # by a content policy, and the message quotes the key: only where it is asked for
TEXT_FAULTS = ("truncated", "wrong_schema", "refusal", "empty", "big")
REFUSAL = "I'm sorry, but I can't help with that."
BIG_TEXT = "word " * 200_000


_LINKS = listed("the a of with for and near beside under before after between without inside toward")
_STARTS = listed("Explain Describe Compare Summarize List Classify Estimate Rewrite Translate Outline")


def answer(payload: dict[str, Any], seed: int) -> dict[str, Any]:
    """The agent's JSON object for a payload. Raises KeyError for an agent that it does not know."""
    canonical = json.dumps(payload, sort_keys=True)
    dice = random.Random(hashlib.sha256(f"{seed}:{canonical}".encode()).digest())
    return _ANSWERS[payload["agent"]](payload, dice)


def _expansion(payload: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    new = [
        {
            "instruction": f"{dice.choice(_STARTS)} {_text(dice, 16)}.",
            "input": "",
            "response": f"It is {_text(dice, 40)}.",
        }
        for _ in range(payload["n"])
    ]
    return {"instructions": new}


def _category(payload: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    same = [dice.random() >= 0.05 for _ in payload["candidates"]]
    return {
        "verdicts": [{"same_category": is_same, "category": "Reasoning" if is_same else "Other"} for is_same in same]
    }


def _rewriting(payload: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    rewritten = {
        "instruction": f"{payload['instruction']} {dice.choice(WORDS)}",
        "response": f"It is {_text(dice, 50)}.",
    }
    if payload.get("chain_of_thought"):
        rewritten["difficulty"] = dice.choice(("easy", "medium", "hard"))
    return rewritten


def _preservation(_payload: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    kept = "same" if dice.random() >= 0.03 else "changed"
    return {"instruction": kept, "answer": kept, "reason": f"Because of {_text(dice, 5)}."}


def _selection(_payload: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    scores = {name: dice.randint(1, 10) for name in ("informativeness", "helpfulness", "generality")}
    return {**scores, "reason": f"Because of {_text(dice, 5)}."}


def _verification(_payload: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    return {"correct": dice.random() < 0.9, "evidence": f"Because of {_text(dice, 5)}.", "tests": []}


def _text(dice: random.Random, words: int) -> str:
    chosen = dice.choices(WORDS, k=words)
    links = dice.choices(_LINKS, k=words // 3)
    for place, link in enumerate(links):
        chosen[3 * place] = link
    return " ".join(chosen)


def _naming(payload: dict[str, Any], _dice: random.Random) -> dict[str, Any]:
    """The same first word is the same kind of work."""
    names = sorted(payload["categories"])
    words = (seed["instruction"].split()[0].lower() for seed in payload["seeds"])
    return {"categories": [names[hashlib.sha256(word.encode()).digest()[0] % len(names)] for word in words]}


def _comparison(payload: dict[str, Any], _dice: random.Random) -> dict[str, Any]:
    """An honest judge of the planted questions: those of one line ask for the same thing."""
    asked = [(pair["first"]["asked"], pair["second"]["asked"]) for pair in payload["pairs"]]
    same = [any(first in line[:5] and second in line[:5] for line in QUESTIONS) for first, second in asked]
    return {"verdicts": [{"difference": "" if is_same else "another question", "same": is_same} for is_same in same]}


_ANSWERS = {
    "comparison": _comparison,
    "naming": _naming,
    "expansion": _expansion,
    "category": _category,
    "rewriting": _rewriting,
    "shortening": lambda payload, dice: {"response": f"It is {_text(dice, 20)}."},
    "preservation": _preservation,
    "selection": _selection,
    "verification": _verification,
}


def as_error(message: str, kind: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def with_fault(content: dict[str, Any], fault: str | None) -> str:
    text = json.dumps(content)
    return {
        "truncated": text[: len(text) // 2],
        "wrong_schema": '{"unexpected": [1, 2, 3]}',
        "refusal": REFUSAL,
        "empty": "",
        "big": BIG_TEXT,
    }.get(fault or "", text)


def as_completion(request: dict[str, Any], prompt: str, content: str) -> dict[str, Any]:
    asked, told = len(prompt) // 4 + 1, len(content) // 4 + 1  # four characters a token, the usual estimate
    message = {"role": "assistant", "content": content}
    return {
        "id": "chatcmpl-" + hashlib.sha256(prompt.encode()).hexdigest()[:24],
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": request.get("model", "test"),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told},
    }


class UnknownRequest(Exception):
    """No request of an agent or a judge."""


def asked_of(body: bytes, options: argparse.Namespace) -> tuple[dict[str, Any], str, dict[str, Any], dict[str, Any]]:
    """The request, its prompt, what the agent is given, and what it answers."""
    try:
        request = json.loads(body)
        prompt = next(m["content"] for m in request["messages"] if m["role"] == "user")
        prompt = prompt[prompt.index('{"agent"') :]  # after the system message, where there is none of its own
        payload = json.loads(prompt)
        is_judges = is_judge(payload["agent"])
        return request, prompt, payload, judged(payload, options.judge) if is_judges else answer(payload, options.seed)
    except (ValueError, KeyError, TypeError, StopIteration) as problem:
        raise UnknownRequest(f"no agent request: {problem!r}") from problem


def fault_of(options: argparse.Namespace, key: str, times_before: int) -> str | None:
    digest = hashlib.sha256(f"{options.seed}:{key}:{times_before}".encode()).digest()
    share = int.from_bytes(digest[:8]) / 2**64 / (options.faults or 1e-9)
    if share >= 1.0 or times_before >= options.faults_of_a_body:
        return None
    return str(options.kinds[int(share * len(options.kinds))])
