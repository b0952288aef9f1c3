"""The demo teacher behind an OpenAI-compatible chat endpoint: a real model that tells its own log-probs.

A model's name says how: `told` as OpenAI (exact bytes, nothing of the end), `ended` as vLLM (the end of turn is a token
more); the others are providers as they should not be (`FAULTS`).
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tasks.engines.generation import Ends, Prompt, TransformersGenerator
from tasks.engines.scoring import TransformersEngine
from tasks.evaluate.heldout.scoring import load_model
from tasks.models import ModelSource, load_tokenizer
from tasks.tokens.alignment import vocabulary_of
from tasks.tokens.rows import TokenisedRow

Told = list[dict[str, Any]]
_CONTEXT = 384


def _without_bytes(told: Told) -> None:
    for one in told:
        one["bytes"] = None
        for top in one["top_logprobs"]:
            top["bytes"] = None


def _not_a_number(told: Told) -> None:
    told[0]["logprob"] = math.nan


def _positive(told: Told) -> None:
    told[0]["top_logprobs"][0]["logprob"] = 3.0


def _other_tokens(told: Told) -> None:
    told[0] |= {"token": "nothing", "bytes": list(b"nothing")}


def _constant(told: Told) -> None:
    """As DeepSeek's API did in 2026."""
    for one in told:
        one["logprob"] = 0.0
        for place, top in enumerate(one["top_logprobs"]):
            top["logprob"] = -9999.0 if place else 0.0


def _no_bytes(told: Told) -> None:
    told[0]["bytes"] = [999]


FAULTS: dict[str, Callable[[Told], None]] = {
    "textual": _without_bytes,
    "nan": _not_a_number,
    "positive": _positive,
    "unspelled": _other_tokens,
    "badbytes": _no_bytes,
    "constant": _constant,
    "untold": list.clear,
    "later": _other_tokens,  # after the first answer
}


class TeacherAPI:
    """A model that answers greedily; `asked` counts requests by their prompt."""

    def __init__(self, source: ModelSource, max_alternatives: int = 20):
        self.asked: Counter[str] = Counter()
        self.delay_s = 0.0
        self._max = max_alternatives
        self._tokenizer = load_tokenizer(source)
        self._ends = Ends.of(source, self._tokenizer)
        self._text = vocabulary_of(source).text
        self._model, self._engine = load_model(source, "auto"), TransformersEngine(source.fetch())
        self._turn = threading.Lock()

    def complete(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The status and the body of a completion."""
        wanted, style = request.get("top_logprobs") or 0, request["model"]
        if wanted > self._max:
            return 400, {"error": {"message": f"top_logprobs must be at most {self._max}", "code": "bad_request"}}
        with self._turn:
            self.asked[json.dumps(request["messages"])] += 1
            ids = self._tokenizer.apply_chat_template(
                request["messages"], add_generation_prompt=True, return_dict=False
            )
            most = 2 if style == "short" else request["max_tokens"]
            generator = TransformersGenerator(self._model, self._ends, min(most, _CONTEXT - len(ids)), 1)
            [[drawn]] = generator.ids([Prompt("", ids)], None)
            answer, truncated = self._ends.written(drawn)
            [scored] = self._engine.score([TokenisedRow("", [*ids, *answer], len(ids))], max(wanted, 1))
        time.sleep(self.delay_s)
        told = [
            {**self._token(token, logprob), "top_logprobs": list(map(self._token, tops, values))}
            for token, logprob, tops, values in zip(
                answer,
                scored.actual_logprobs_R.tolist(),
                scored.topk_ids_RK.tolist(),
                scored.logprobs_RK.tolist(),
                strict=True,
            )
        ]
        if not truncated and style != "ended":
            told.pop()
        if style in FAULTS and not (style == "later" and self.asked.total() == 1):
            FAULTS[style](told)
        text = self._tokenizer.decode(answer if truncated else answer[:-1])
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "length" if truncated else "stop",
            "logprobs": {"content": told} if wanted and style != "untold" else None,
        }
        used = {"prompt_tokens": len(ids), "completion_tokens": len(answer), "total_tokens": len(ids) + len(answer)}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": style, "choices": [choice]}
        return 200, {**body, "usage": used}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        spelled = self._text[token]
        name = self._tokenizer.convert_ids_to_tokens(token)
        known = name.encode() if spelled is None else spelled
        return {"token": known.decode("utf-8", "replace"), "bytes": list(known), "logprob": logprob}


@contextlib.contextmanager
def serving(api: TeacherAPI) -> Iterator[str]:
    """Its base URL, while it answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = api.complete(request)
            body = json.dumps(answer).encode()
            with contextlib.suppress(ConnectionError):  # whoever asked was killed
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
