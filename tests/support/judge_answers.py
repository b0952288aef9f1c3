"""What the test endpoint answers as a judge: by a known preference, so that every rate can be computed by hand.

An answer's quality is written into it ("quality 7"), and what a probe looks for is its own name.
"""

from __future__ import annotations

import math
import re
from typing import Any

JUDGES = ("honest", "long", "first", "second")
_QUALITY = re.compile(r"quality (\d+)")


def is_judge(agent: str) -> bool:
    return agent in ("alpaca_eval", "mt_bench", "mt_bench_reference") or agent.startswith("probe_")


def judged(payload: dict[str, Any], judge: str) -> dict[str, Any]:
    """The judge's JSON object for a payload."""
    agent = payload["agent"]
    if agent == "alpaca_eval":
        first, second = (output["output"] for output in payload["outputs"])
        prefers_second = {
            "honest": quality(second) > quality(first),
            "long": len(second) > len(first),
            "first": False,
            "second": True,
        }[judge]
        return {"reason": f"Because I am {judge}.", "better": "M" if prefers_second else "m"}
    if agent.startswith("probe_"):
        present = agent.removeprefix("probe_") in payload["response"]
        return {"reason": "I looked for its name.", "present": present}
    rating = quality(payload["conversation"][-1]["assistant"])
    return {"reason": f"{len(payload.get('reference_answers', ()))} references", "rating": rating}


def quality(text: str) -> int:
    found = _QUALITY.search(text)
    return int(found.group(1)) if found else 1


def logprobs(text: str, confidence: float) -> dict[str, Any]:
    """Log-probs as OpenAI has them; a preference's letter, in one token with its quotation mark, has `confidence`."""
    place = text.rfind('"better": "') + len('"better": ')
    tokens = [text[:place], text[place : place + 2], text[place + 2 :]]
    content = [_token(token, [(token, 1.0)]) for token in tokens]
    chosen = tokens[1]
    other = chosen.swapcase()
    content[1] = _token(chosen, [(chosen, 0.9 * confidence), (other, 0.9 * (1 - confidence)), ('"x', 0.1)])
    return {"content": content}


def _token(token: str, alternatives: list[tuple[str, float]]) -> dict[str, Any]:
    tops = [{"token": other, "logprob": math.log(p), "bytes": None} for other, p in alternatives if p > 0]
    return {"token": token, "logprob": tops[0]["logprob"], "bytes": None, "top_logprobs": tops}
