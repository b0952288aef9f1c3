"""The demo LLM server: an OpenAI-compatible HTTP endpoint played by rule. It is NOT a language model.

It stands where a company's proprietary LLM stands, so that a demo run needs no key and no network: LiteLLM
talks to it over HTTP exactly as it would to a provider, and everything above it is production code. It
knows the SQL demo domain only (`llm_agents`). Point the pipeline's agent model at any LiteLLM model name to
use a real LLM instead.

    python -m tasks.demo.llm_server --port 8001

POST /v1/chat/completions, GET /v1/models, GET /health. The last user message must be one agent request as
JSON; the assistant's message is the agent's JSON object. The same messages always get the same answer.
"""

import argparse
import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tasks.demo.llm_agents import BadAgentRequestError, answer

MODEL_NAME = "demo-llm"
OWNER = "distilflow demo: answers by rule, not a language model"


def _error(status: int, message: str, code: str) -> web.Response:
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return web.json_response(body, status=status)


def _last_user_message(payload: object) -> tuple[str, str]:
    """The content of the last user message, and the hash of all messages that seeds the answer."""
    messages = payload.get("messages") if isinstance(payload, dict) else None
    if not isinstance(messages, list):
        raise BadAgentRequestError("the request needs a list 'messages'")
    contents = [m.get("content") for m in messages if isinstance(m, dict) and m.get("role") == "user"]
    if not contents or not isinstance(contents[-1], str):
        raise BadAgentRequestError("the request needs a user message with text content")
    canonical = json.dumps(messages, sort_keys=True, ensure_ascii=False)
    return contents[-1], hashlib.sha256(canonical.encode()).hexdigest()


def complete_chat(payload: object) -> dict[str, Any]:
    """The chat completion of an OpenAI request. Raises BadAgentRequestError for one that it cannot answer."""
    if isinstance(payload, dict) and payload.get("stream"):
        raise BadAgentRequestError("the demo LLM does not stream")
    prompt, seed = _last_user_message(payload)
    try:
        body = json.loads(prompt)
    except json.JSONDecodeError as error:
        raise BadAgentRequestError(f"the last user message must be one JSON object: {error}") from error
    content = json.dumps(answer(body, seed), ensure_ascii=False)
    # Four characters a token is the usual estimate for English; the pipeline only reports these counts.
    prompt_tokens, completion_tokens = len(prompt) // 4 + 1, len(content) // 4 + 1
    message = {"role": "assistant", "content": content}
    return {
        "id": f"chatcmpl-{seed[:24]}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL_NAME,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


async def _chat_completions(request: web.Request) -> web.Response:
    try:
        payload = await request.json()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return _error(400, f"the request body is not JSON: {error}", "invalid_json")
    if isinstance(payload, dict) and payload.get("model") != MODEL_NAME:
        return _error(404, f"the model {payload.get('model')!r} does not exist here; there is {MODEL_NAME!r}",
                      "model_not_found")  # fmt: skip
    try:
        return web.json_response(complete_chat(payload))
    except BadAgentRequestError as error:
        return _error(400, str(error), "invalid_agent_request")


async def _models(_: web.Request) -> web.Response:
    model = {"id": MODEL_NAME, "object": "model", "created": 0, "owned_by": OWNER}
    return web.json_response({"object": "list", "data": [model]})


async def _health(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok", "model": MODEL_NAME, "note": OWNER})


def build_app() -> web.Application:
    app = web.Application(client_max_size=4 * 1024**2)
    app.router.add_post("/v1/chat/completions", _chat_completions)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/health", _health)
    return app


@asynccontextmanager
async def serving(port: int = 0, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """Serve inside a running event loop; yields the base URL (`http://host:port/v1`).

    Port 0 takes a free one.

    Raises OSError if the port is taken.
    """
    runner = web.AppRunner(build_app(), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        bound = runner.addresses[0][1]
        yield f"http://{host}:{bound}/v1"
    finally:
        await runner.cleanup()


async def _serve_forever(port: int) -> None:
    async with serving(port) as url:
        print(f"demo LLM server ({OWNER}) on {url}", flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    try:
        asyncio.run(_serve_forever(parser.parse_args().port))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
