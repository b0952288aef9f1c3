"""A provider process: LiteLLM, its Router and all that they cost in CPU, behind a pipe.

`python -m tasks.llm.litellm_process` reads JSON lines and writes JSON lines. The first line in is the
configuration, answered by `{"ready": …}` or `{"error": {"kind", "message"}}`; each further line is a request
(or texts to `count` the tokens of) with an `id`, answered in any order by a line with the same `id`. It leaves
at once when its standard input closes, also in the middle of something. `tasks.llm.litellm_pool` is the other
end.

A route is a model and its fallbacks, each a Router group of one deployment. The Router retries 408, 409, 429
and 5xx, honouring `Retry-After` up to a minute and backing off exponentially otherwise; it then goes on to the
next fallback. What a server does not take of a request is left out of it (`tasks.llm.litellm_forms`). The
Router would also take a failing deployment out of service ("cooldown"), and the last one of a route with it; that
one is exempt here, because a row must never be lost to "no deployments available".
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import logging
import os
import select
import sys
import threading
from contextvars import ContextVar
from typing import Any

from infra.processes.program import lean_imports
from tasks.llm.litellm_errors import is_unreadable, kind_of, retry_after_s, words_of
from tasks.llm.litellm_forms import Form, Line
from tasks.llm.litellm_replies import fields_of, joining_parts, wanted_logprobs
from tasks.llm.protocol import as_bytes
from tasks.llm.redaction import redacted

COOLDOWN_S = 30.0
# Between two starts, about the CPU that one takes. Started in a burst, requests share the core and so end in a
# burst, again and again: the core is idle while all of them wait. Spaced, they overlap.
SPACING_S = 0.002
_MAX_ANSWER = 2_000_000  # characters: what the other end takes in one line
_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no fetch of a price map at import
    "LITELLM_LOG": "CRITICAL",
    # the Router's own HTTP handler in place of the OpenAI SDK, which costs another millisecond a request
    "EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER": "True",
    # a deployment where all of so many requests in a minute failed is passed over for its fallback
    "SINGLE_DEPLOYMENT_TRAFFIC_FAILURE_THRESHOLD": "20",
}

_REQUEST: ContextVar[Line] = ContextVar("request")


class Refusal(Exception):
    """A configuration that cannot work; `kind` as in the protocol's errors."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def load_litellm() -> Any:
    """LiteLLM, quiet, and without the bookkeeping that nobody here reads."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with lean_imports():
        import litellm
        from litellm.litellm_core_utils import logging_worker
        from litellm.litellm_core_utils.llm_response_utils import convert_dict_to_response

    litellm.suppress_debug_info = True
    litellm.drop_params = True
    litellm.telemetry = False
    litellm.expose_router_debug_in_errors = False
    litellm.disable_hf_tokenizer_download = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    vars(logging_worker)["GLOBAL_LOGGING_WORKER"] = _NoLogging()
    extract = convert_dict_to_response.extract_reasoning_content
    vars(convert_dict_to_response)["extract_reasoning_content"] = joining_parts(extract)
    return litellm


class _NoLogging:
    """In place of the worker that builds a logging payload for every answer."""

    def ensure_initialized_and_enqueue(self, async_coroutine: Any) -> None:
        async_coroutine.close()


def light_router(
    litellm: Any, routes: dict[str, list[Line]], forms: dict[str, Form], retries: int, timeout_s: float
) -> Any:
    """A Router that asks each deployment in the form that it takes, for each schema, and then keeps to it.

    `forms` has the first to try, by group. No accounts are kept of tokens a minute, which count for nothing where no
    limit is set.
    """
    from litellm.router_utils.router_callbacks import track_deployment_metrics

    proven: dict[tuple[str, str | None], Form] = {}

    class LightRouter(litellm.Router):  # type: ignore[misc, name-defined]
        async def _acompletion(self, model: str, messages: Any, **kwargs: Any) -> Any:
            request = _REQUEST.get()
            place = model, request.get("schema_name")
            form = proven.get(place, forms[model])
            while True:
                try:
                    reply = await super()._acompletion(model, form.messages(request), **kwargs, **form.of(request))
                except Exception as error:
                    other = form.without(kind_of(litellm, error), words_of(error), request)
                    if other is None:
                        raise
                    form = other
                else:
                    proven.setdefault(place, dataclasses.replace(form, proven=True))  # the first came straightest
                    return reply

        def should_retry_this_error(self, error: Exception, *args: Any, **kwargs: Any) -> Any:
            if kind_of(litellm, error) in ("quota", "content_policy") or is_unreadable(error):
                raise error
            return super().should_retry_this_error(error, *args, **kwargs)

        async def increment_deployment_usage_for_response(self, response: Any, request_kwargs: Any) -> None:
            # the success callback counts this, and the cooldown rule needs it; the worker would have run it
            if deployment := response._hidden_params.get("model_id"):
                track_deployment_metrics.increment_deployment_successes_for_current_minute(self, deployment)

        async def set_response_headers(self, response: Any, model_group: Any = None, request_kwargs: Any = None) -> Any:
            return response

    groups = []
    for route, endpoints in routes.items():
        for place, endpoint in enumerate(endpoints):
            parameters = {name: endpoint.get(name) for name in ("model", "api_base", "api_key") if endpoint.get(name)}
            if endpoint.get("api_base") and not endpoint.get("api_key") and missing_keys(litellm, endpoint["model"]):
                parameters["api_key"] = "none"  # self-hosted servers seldom ask for one, and clients want one
            is_last = place == len(endpoints) - 1
            parameters["cooldown_time"] = 0.0 if is_last else COOLDOWN_S
            group = _group(route, place)
            groups.append({"model_name": group, "litellm_params": parameters, "model_info": {"id": group}})
    longest = max(len(endpoints) for endpoints in routes.values())
    return LightRouter(model_list=groups, num_retries=retries, timeout=timeout_s, max_fallbacks=longest)


def describe(litellm: Any, endpoint: Line) -> Line:
    """What LiteLLM knows of a model. Raises Refusal for a model that it cannot reach."""
    model, base = endpoint["model"], endpoint.get("api_base")
    try:
        litellm.get_llm_provider(model, api_base=base)
    except litellm.BadRequestError as error:
        raise Refusal("unknown_model", f"{model!r} is no LiteLLM model name: use PROVIDER/MODEL") from error
    if base is None and endpoint.get("api_key") is None and (missing := missing_keys(litellm, model)):
        raise Refusal("missing_key", f"{model!r} needs its provider's key: set {' or '.join(missing)}")
    try:
        known = litellm.get_model_info(model)
    except Exception:  # LiteLLM's way to say that its price map does not have it
        known = {}
    prices = [known.get(f"{side}_cost_per_token") or 0.0 for side in ("input", "output")]
    batched = [known.get(f"{side}_cost_per_token_batches") for side in ("input", "output")]
    in_batches = [price / 2 if batch is None else batch for price, batch in zip(prices, batched, strict=True)]
    takes_format = "response_format" in (litellm.get_supported_openai_params(model) or [])
    if takes_format and (not known or litellm.supports_response_schema(model)):
        mode = "schema"
    else:
        mode = "json" if takes_format else "prompt"
    return {
        "model": model,
        "mode": mode,
        "usd_per_input_token": prices[0],
        "usd_per_output_token": prices[1],
        "usd_per_token_in_batches": in_batches,
        "priced": any(prices),
        "max_output_tokens": known.get("max_output_tokens"),
    }


class Provider:
    """Answers requests by the routes of a configuration."""

    def __init__(self, configuration: Line):
        self._litellm = load_litellm()
        routes = configuration["routes"]
        self.described = {
            route: [describe(self._litellm, endpoint) for endpoint in endpoints] for route, endpoints in routes.items()
        }
        self._keys = [e["api_key"] for endpoints in routes.values() for e in endpoints if e.get("api_key")]
        forms = {
            _group(route, place): Form(one["mode"])
            for route, models in self.described.items()
            for place, one in enumerate(models)
        }
        self._router = light_router(self._litellm, routes, forms, configuration["retries"], configuration["timeout_s"])

    async def answer(self, request: Line) -> Line:
        """The answering line, whatever happens."""
        if "count" in request:
            return {"id": request["id"], "tokens": self.tokens(request["route"], request["count"])}
        route = request["route"]
        groups = [_group(route, place) for place in range(len(self.described[route]))]
        arguments: Line = {"model": groups[0], "messages": request["messages"]}
        if others := groups[1:]:
            arguments["fallbacks"] = [{"model": group} for group in others]
        _REQUEST.set(request)  # for the Router's own call, one of each deployment that it tries
        try:
            reply = await self._router.acompletion(**arguments)
            fields = fields_of(reply, logprobs=wanted_logprobs(request))
            if (length := len(fields["text"])) > _MAX_ANSWER:
                raise Refusal("server", f"an answer of {length} characters")
            return {
                "id": request["id"],
                **fields,
                "cost_usd": reply._hidden_params.get("response_cost") or 0.0,
                "model": reply._hidden_params.get("litellm_model_name") or reply.model,
                "place": groups.index(reply._hidden_params.get("model_id", groups[0])),
            }
        except Exception as error:
            return {"id": request["id"], "error": self.as_line(error)}

    def tokens(self, route: str, texts: list[str]) -> list[int]:
        """Tokens of each text, by the tokenizer that LiteLLM has for the route's model."""
        model = self.described[route][0]["model"]
        return [self._litellm.token_counter(model=model, text=text) for text in texts]

    def as_line(self, error: Exception) -> Line:
        """An error as the protocol has it."""
        kind = error.kind if isinstance(error, Refusal) else kind_of(self._litellm, error)
        return {"kind": kind, "message": redacted(words_of(error), self._keys), "retry_after_s": retry_after_s(error)}


def _group(route: str, place: int) -> str:
    return f"{route}/{place}"


def missing_keys(litellm: Any, model: str) -> list[str]:
    """The variables of the environment that the model's provider needs, and that are not set."""
    needed = litellm.validate_environment(model)
    return [] if needed["keys_in_environment"] else list(needed["missing_keys"])


def _leave_with_parent() -> None:
    """Exit when standard input hangs up, also while the interpreter is busy (an import, a long computation)."""
    hung_up = select.poll()
    hung_up.register(0, 0)  # no event but the hang-up

    def watch() -> None:
        hung_up.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


async def _serve(answers: Any) -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=2**24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    channel, _ = await loop.connect_write_pipe(asyncio.Protocol, answers)

    def write(line: Line) -> None:
        channel.write(as_bytes(line))

    configuration = json.loads(await lines.readline())
    try:
        provider = Provider(configuration)
    except Refusal as refusal:
        write({"error": {"kind": refusal.kind, "message": redacted(str(refusal), [])}})
        return
    gc.collect()
    gc.freeze()  # LiteLLM leaves a million objects that would be walked again and again
    gc.set_threshold(50_000, 20, 50)
    write({"ready": {"routes": provider.described}})

    async def serve(request: Line) -> None:
        write(await provider.answer(request))

    running: set[asyncio.Task[None]] = set()
    while line := await lines.readline():
        task = asyncio.create_task(serve(json.loads(line)))
        running.add(task)
        task.add_done_callback(running.discard)
        await asyncio.sleep(SPACING_S)
    os._exit(0)  # nobody is there to hear what is still in flight


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints must not look like an answer
    _leave_with_parent()
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(answers))
    else:
        uvloop.run(_serve(answers))


if __name__ == "__main__":
    main()
