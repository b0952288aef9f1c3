"""A local OpenAI-compatible chat endpoint with latency and faults, for tests. It is NOT a language model.

    python -m tests.support.endpoint --port 0 --latency 0.2 --faults 0.2 --seed 0

prints its base URL when it is ready. It answers agent requests by rule (`tests.support.endpoint_answers`): the same
payload always gets the same answer, a model that is named after a form of `tests.support.answer_forms` in that form.
Which requests meet a fault is decided by a hash of the body and of how often that body came before, so that a
repeated request passes in the end. A bare asyncio protocol, because it shares the machine with what it measures.
`GET /stats` and `GET /seen` tell what came in. `--batches` adds the batch API (`tests.support.endpoint_batches`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import hashlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.answer_forms import FORMS
from tests.support.endpoint_answers import (
    DECLINED,
    TEXT_FAULTS,
    UnknownRequest,
    as_completion,
    as_error,
    asked_of,
    fault_of,
    with_fault,
)
from tests.support.endpoint_batches import HOLDS, KINDS, Batches, in_a_batch
from tests.support.judge_answers import JUDGES, logprobs

HANG_S = 60.0
FAULTS = ("429", "500", "hang", "cut", *TEXT_FAULTS)
_HEAD = "HTTP/1.1 {} x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n"


class Book:
    """What came in, and what each body was answered with."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.by_fault: Counter[str] = Counter()
        self.by_agent: Counter[str] = Counter()
        self.in_flight: Counter[str] = Counter()
        self.answered: set[str] = set()
        self.tokens: Counter[str] = Counter()
        self.repeated = 0
        self.connections = 0
        self.max_in_flight = 0
        self.first = self.last = 0.0  # when the first request came and when the last answer left

    def arrived(self, key: str, agent: str) -> int:
        """Count a request in; how often its body came before."""
        before = self.seen[key]
        self.first = self.first or time.monotonic()
        self.repeated += key in self.answered or self.in_flight[key] > 0
        self.seen[key] += 1
        self.by_agent[agent] += 1
        self.in_flight[key] += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight.total())
        return before

    def left(self, key: str, answered: bool) -> None:
        self.last = time.monotonic()
        self.in_flight[key] -= 1
        if not self.in_flight[key]:
            del self.in_flight[key]
        if answered:
            self.answered.add(key)

    def stats(self) -> dict[str, Any]:
        return {
            "requests": self.seen.total(),
            "distinct": len(self.seen),
            "repeated": self.repeated,
            "connections": self.connections,
            "in_flight": self.in_flight.total(),
            "max_in_flight": self.max_in_flight,
            "seconds": self.last - self.first,
            "by_fault": dict(self.by_fault),
            "by_agent": dict(self.by_agent),
            "tokens": dict(self.tokens),
        }


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, options: argparse.Namespace, book: Book, batches: Batches):
        self._options = options
        self._book = book
        self._batches = batches
        self._received = b""
        self._pending: str | None = None  # the body hash of the request that waits for its answer
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._book.connections += 1

    def connection_lost(self, _error: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._done(answered=False)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        first_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if len(body) >= (length := int(headers.get("content-length", 0))):
            self._received = body[length:]
            method, path, _ = first_line.split(" ")
            self._take(method, path, headers, body[:length])

    def _take(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        if (method, path) == ("GET", "/stats"):
            self._write(200, self._book.stats() | self._batches.stats())
        elif (method, path) == ("GET", "/seen"):
            self._write(200, dict(self._book.seen))
        elif (method, path) == ("GET", "/release"):
            self._batches.release()
            self._write(200, {})
        elif (given := headers.get("authorization", "").removeprefix("Bearer ")) != self._options.require_key != "":
            self._write(
                401, as_error(f"Incorrect API key provided: {given}.", "invalid_request_error", "invalid_api_key")
            )
        elif self._batches.takes(path):
            self._batches.take(method, path, headers, body, self._write)
        elif (method, path) == ("POST", "/v1/chat/completions"):
            self._chat(body, given)
        else:
            self._write(404, as_error(f"nothing at {method} {path}", "not_found_error", "not_found"))

    def _chat(self, body: bytes, key: str) -> None:
        try:
            request, prompt, payload, content = asked_of(body, self._options)
        except UnknownRequest as problem:
            self._write(400, as_error(str(problem), "invalid_request_error", "bad_request"))
            return
        agent = payload["agent"]
        self._pending = hashlib.sha256(body).hexdigest()
        fault = fault_of(self._options, self._pending, self._book.arrived(self._pending, agent))
        if form := FORMS.get(request["model"]):
            self._later(self._options.latency, self._in_form, form(request, payload, content), request, prompt)
            return
        if fault:
            self._book.by_fault[fault] += 1
        if fault == "hang":
            self._later(HANG_S, self._transport.abort)
        elif fault == "429":
            refused = as_error("Rate limit reached for requests", "requests", "rate_limit_exceeded")
            self._later(0.0, self._answer, 429, refused, "Retry-After: 1\r\n")
        elif fault == DECLINED:
            declined = as_error(
                f"Declined for {key}: our content policy", "invalid_request_error", "content_policy_violation"
            )
            self._later(0.0, self._answer, 400, declined)
        elif fault == "500":
            self._later(0.0, self._answer, 500, as_error("The server had an error", "server_error", None))
        else:
            completion = as_completion(request, prompt, with_fault(content, fault))
            if request.get("logprobs") and self._options.confidence and not fault:
                text = completion["choices"][0]["message"]["content"]
                completion["choices"][0]["logprobs"] = logprobs(text, self._options.confidence)
            self._later(self._options.latency, self._cut if fault == "cut" else self._answer, 200, completion)

    def _in_form(self, said: dict[str, Any], request: dict[str, Any], prompt: str) -> None:
        if status := said.get("status"):
            self._answer(status, as_error(said["message"], "invalid_request_error", said["code"]))
            return
        completion = as_completion(request, prompt, str(said["content"] or ""))
        if "choices" in said:
            completion["choices"] = said["choices"]
        else:
            finish = said.pop("finish_reason", "stop")
            completion["choices"][0] |= {"message": {"role": "assistant", **said}, "finish_reason": finish}
        self._answer(200, completion)

    def _later(self, delay_s: float, call: Any, *arguments: Any) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, call, *arguments)

    def _answer(self, status: int, document: dict[str, Any], headers: str = "") -> None:
        self._done(answered=status == 200)
        self._book.tokens.update(document.get("usage", {}))
        self._write(status, document, headers)

    def _cut(self, status: int, document: dict[str, Any]) -> None:
        whole = _response(status, document, "")
        self._transport.write(whole[: len(whole) - 40])
        self._transport.close()

    def _write(self, status: int, document: dict[str, Any] | bytes, headers: str = "") -> None:
        self._transport.write(_response(status, document, headers))

    def _done(self, answered: bool) -> None:
        if self._pending:
            self._book.left(self._pending, answered)
            self._pending = None


def _response(status: int, document: dict[str, Any] | bytes, headers: str) -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return _HEAD.format(status, len(body), headers).encode() + body


def tell(base_url: str, what: str) -> dict[str, Any]:
    """`stats` or `seen` of a running endpoint; `release` goes on with what it holds."""
    with urllib.request.urlopen(f"{base_url.removesuffix('/v1')}/{what}", timeout=10) as answered:
        return json.load(answered)


@contextlib.contextmanager
def endpoint(**options: Any) -> Iterator[str]:
    """Its base URL while it runs in a process of its own, which ends with this one, however this one ends.

    Options as on the command line: `endpoint(latency=0.2, faults=0.1, kinds=["429"], require_key="sk-x")`.
    """
    words: list[str] = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [str(value)])]
    command = [sys.executable, "-m", "tests.support.endpoint", *words, "--until-stdin-closes"]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().strip()
        finally:
            process.kill()


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    book = Book()
    answer_line = functools.partial(in_a_batch, options, book)
    batches = Batches(answer_line, options.batches, options.batch_most, options.hold)
    server = await loop.create_server(
        lambda: Connection(options, book, batches), "127.0.0.1", options.port, backlog=1024
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    if options.until_stdin_closes:
        gone = asyncio.Event()
        watch = threading.Thread(
            target=lambda: (sys.stdin.buffer.read(), loop.call_soon_threadsafe(gone.set)), daemon=True
        )
        watch.start()
        await gone.wait()
    else:
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="A local OpenAI-compatible chat endpoint that answers by rule.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds until an answer")
    parser.add_argument("--faults", type=float, default=0.0, help="share of the requests that meet a fault")
    parser.add_argument("--kinds", nargs="+", choices=(*FAULTS, DECLINED), default=FAULTS, help="the faults, evenly")
    parser.add_argument("--faults-of-a-body", type=int, default=10**9, help="how often one body meets faults")
    parser.add_argument("--seed", type=int, default=0, help="of the answers and of the faults")
    parser.add_argument("--require-key", default="", help="answer 401 to any other bearer")
    parser.add_argument("--judge", choices=JUDGES, default="honest", help="what it favours as a judge")
    parser.add_argument("--confidence", type=float, default=0.0, help="p of its preferences; 0: tells no log-probs")
    parser.add_argument("--batches", choices=KINDS, default="none", help="the batch API, and how the first one ends")
    parser.add_argument("--batch-most", type=int, default=0, help="requests of a batch that it takes")
    parser.add_argument("--hold", choices=HOLDS, default="", help="where batches are held until GET /release")
    parser.add_argument("--until-stdin-closes", action="store_true")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
