"""OpenAI's batch API for the test endpoint: files and batches in memory, with what can go wrong, and held where told.

A batch is answered when it is created, which is when its requests count as asked; how soon that shows is another
matter. `hold` names where a caller is kept waiting until `GET /release`: "create" (the batch is there, its maker is not
told), "wait" (it stays in progress), "read" (half a file of answers is sent).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.endpoint_answers import DECLINED, as_completion, as_error, asked_of, fault_of, with_fault
from tests.support.judge_answers import logprobs

KINDS = ("none", "plain", "expires", "cancelled", "invalid")
HOLDS = ("", "create", "wait", "read")
Reply = Callable[[int, Any], None]  # a status, and a document or bytes


class Batches:
    """`answer` is what a request's body is answered with. Without a batch API (`kind` none) nothing is here."""

    def __init__(self, answer: Callable[[bytes], tuple[int, dict[str, Any]]], kind: str, most: int, hold: str):
        self._answer, self._kind, self._most, self._hold = answer, kind, most, hold
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._held: list[Callable[[], None]] = []
        self.looks = self.reads = 0

    def stats(self) -> dict[str, Any]:
        counted = [[batch["status"], batch["request_counts"]["total"]] for batch in self._batches.values()]
        return {"batches": counted, "held": len(self._held), "looks": self.looks, "reads": self.reads}

    def release(self) -> None:
        self._hold = ""
        for go_on in self._held:
            go_on()

    def takes(self, path: str) -> bool:
        return self._kind != "none" and path.startswith(("/v1/files", "/v1/batches"))

    def take(self, method: str, path: str, headers: dict[str, str], body: bytes, reply: Reply) -> None:
        """Answer by `reply`, now or when released."""
        address = urlsplit(path)
        match [method, *address.path.removeprefix("/v1/").split("/")]:
            case ["POST", "files"]:
                name = f"file-{len(self._files)}"
                self._files[name] = _uploaded(headers["content-type"], body)
                reply(200, _file(name, self._files[name]))
            case ["GET", "files", name, "content"] if name in self._files:
                self.reads += 1
                self._unless_held("read", lambda: reply(200, self._files[name]))
            case ["POST", "batches"]:
                batch = self._new(json.loads(body))
                self._unless_held("create", lambda: reply(200, batch))
            case ["GET", "batches"]:
                after = parse_qs(address.query).get("after", [""])[0]
                names = list(reversed(self._batches))  # the newest first
                rest = names[names.index(after) + 1 :] if after else names
                page = [self._batches[name] for name in rest[:2]]
                reply(200, {"object": "list", "data": page, "has_more": len(rest) > len(page)})
            case ["GET", "batches", name] if name in self._batches:
                self.looks += 1
                batch = self._batches[name]
                in_progress = self._hold == "wait" or batch.pop("unseen", False)
                reply(200, {**batch, "status": "in_progress"} if in_progress else batch)
            case _:
                reply(404, {"error": {"message": f"nothing at {method} {path}", "type": "x", "code": "not_found"}})

    def _unless_held(self, where: str, go_on: Callable[[], None]) -> None:
        if self._hold == where:
            self._held.append(go_on)
        else:
            go_on()

    def _new(self, asked: dict[str, Any]) -> dict[str, Any]:
        lines = [json.loads(line) for line in self._files[asked["input_file_id"]].splitlines()]
        name = f"batch-{len(self._batches)}"
        kind = self._kind
        if kind != "invalid" and len(lines) > 1:
            self._kind = "plain"  # the first one alone meets its fate
        batch = self._batches[name] = {
            "id": name,
            "object": "batch",
            "created_at": int(time.time()),
            "unseen": True,
            **{field: asked[field] for field in ("endpoint", "input_file_id", "completion_window", "metadata")},
            "status": "completed",
        }
        if self._most and len(lines) > self._most:
            self._fails(batch, "token_limit_exceeded", "Enqueued token limit reached for test")
        elif kind == "invalid":
            self._fails(batch, "invalid_json_line", "This line is not parseable as valid JSON. sk-secret-key-123456")
        else:
            part = kind in ("expires", "cancelled") and len(lines) > 1
            self._answered(batch, lines, lines[: len(lines) // 2] if part else lines)
            batch["status"] = {"expires": "expired", "cancelled": "cancelled"}[kind] if part else "completed"
        batch.setdefault("request_counts", {"total": len(lines), "completed": 0, "failed": 0})
        return batch

    def _fails(self, batch: dict[str, Any], code: str, message: str) -> None:
        batch["status"] = "failed"
        batch["errors"] = {"object": "list", "data": [{"code": code, "message": message, "line": 1, "param": None}]}

    def _answered(self, batch: dict[str, Any], lines: list[Any], reached: list[Any]) -> None:
        good: list[Any] = []
        bad = [
            {"custom_id": line["custom_id"], "response": None, "error": {"code": "batch_expired", "message": "expired"}}
            for line in lines[len(reached) :]
        ]
        for line in reversed(reached):  # the order of answers is not that of requests
            status, body = self._answer(
                json.dumps(line["body"], sort_keys=True).encode()
            )  # LiteLLM's order is not fixed
            response = {"status_code": status, "request_id": "r", "body": body}
            (good if status == 200 else bad).append(
                {"id": "x", "custom_id": line["custom_id"], "response": response, "error": None}
            )
        for field, found in (("output_file_id", good), ("error_file_id", bad)):
            if found:
                batch[field] = f"file-{len(self._files)}"
                self._files[batch[field]] = b"".join(json.dumps(one).encode() + b"\n" for one in found)
        batch["request_counts"] = {"total": len(lines), "completed": len(good), "failed": len(bad)}


def in_a_batch(options: argparse.Namespace, book: Any, body: bytes) -> tuple[int, dict[str, Any]]:
    """The answer to a line of a batch: there is no wire that could hang or be cut."""
    request, prompt, payload, content = asked_of(body, options)
    key = hashlib.sha256(body).hexdigest()
    fault = fault_of(options, key, book.arrived(key, payload["agent"]))
    if fault:
        book.by_fault[fault] += 1
    document = as_completion(request, prompt, with_fault(content, fault))
    if request.get("logprobs") and options.confidence and not fault:
        choice = document["choices"][0]
        choice["logprobs"] = logprobs(choice["message"]["content"], options.confidence)
    status = {"429": 429, "500": 500, DECLINED: 400}.get(fault or "", 200)
    if status == 200:
        book.tokens.update(document["usage"])
    else:
        document = as_error(f"failed with {fault}", "server_error", None)
    book.left(key, status == 200)
    return status, document


def _uploaded(content_type: str, body: bytes) -> bytes:
    """The file in a multipart form."""
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    for part in body.split(b"--" + boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return content.removesuffix(b"\r\n")
    raise ValueError("no file in the form")


def _file(name: str, data: bytes) -> dict[str, Any]:
    about = {"id": name, "object": "file", "bytes": len(data), "created_at": int(time.time())}
    return {**about, "filename": f"{name}.jsonl", "purpose": "batch", "status": "processed"}
