"""A provider's batch API in OpenAI's form, through LiteLLM: requests go up as a file, answers come down as files.

All of it runs on LiteLLM's own event loop (`tasks.llm.litellm_here`); what waits, and for what, is known to
`tasks.llm.batches`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from tasks.llm.litellm_errors import kind_of, words_of
from tasks.llm.litellm_forms import Form, Line
from tasks.llm.litellm_process import load_litellm, missing_keys
from tasks.llm.litellm_replies import fields_of
from tasks.llm.protocol import LLMEndpoint, ProviderError, as_bytes
from tasks.llm.redaction import redacted

PROVIDERS = ("openai", "azure", "hosted_vllm", "litellm_proxy")  # LiteLLM can list their batches, and so find ours
ENDED = {"completed", "failed", "expired", "cancelled"}
QUEUE_IS_FULL = "token_limit_exceeded"
_CHAT = "/v1/chat/completions"
_OURS = "distilflow"  # among a batch's metadata: the name that we gave it
_TRANSFER_S = 600.0
_PAGE, _PAGES = 100, 50
_NO_SUCH_API = (404, 405, 501)


@dataclass(frozen=True)
class BatchState:
    """How far a batch is. `files` has the answers and then the errors; `code` and `error` say why it failed as a whole.

    `status` is the provider's: validating, in_progress, finalizing, cancelling, or one of `ENDED`.
    """

    status: str
    done: int
    files: tuple[str, ...] = ()
    code: str = ""
    error: ProviderError | None = None

    @property
    def has_ended(self) -> bool:
        """Whether its answers can be read; some providers say "completed" a moment before there is a file."""
        return self.status in ENDED and bool(self.status != "completed" or self.files or not self.done)


class BatchAPI:
    """The batch API for one model. Its methods raise ProviderError."""

    def __init__(self, endpoint: LLMEndpoint, timeout_s: float):
        self._litellm = _litellm()
        self._keys = [endpoint.api_key or ""]
        given = {"api_base": endpoint.api_base, "api_key": endpoint.api_key}
        self.model, self.provider, key, base = self._litellm.get_llm_provider(endpoint.model, **given)
        if self.provider not in PROVIDERS:
            raise ProviderError(
                "no_batches",
                f"{endpoint.model!r} cannot be asked in batches, which LiteLLM does at {', '.join(PROVIDERS)} and, as "
                "openai/MODEL with its address, at any server with OpenAI's batch API: leave `batch` off",
            )
        key = key or endpoint.api_key
        if endpoint.api_base and not key and missing_keys(self._litellm, endpoint.model):
            key = "none"
        self._form = self._litellm.ProviderConfigManager.get_provider_chat_config(
            self.model, self._litellm.LlmProviders(self.provider)
        )
        self._timeout_s = timeout_s
        self._there = {
            "custom_llm_provider": self.provider,
            "api_base": base or endpoint.api_base,
            "api_key": key,
            "max_retries": 0,  # a lost answer to "create" must not become two batches
        }

    def line(self, key: str, request: Line, form: Form) -> bytes:
        """A request as a line of the file, named by its key. A batch is of one model."""
        messages = copy.deepcopy(form.messages(request))  # LiteLLM changes them in place
        about = {"model": self.model, "custom_llm_provider": self.provider}
        with self._explained():
            chosen = self._litellm.get_optional_params(**about, messages=messages, **form.of(request))
            body = self._form.transform_request(self.model, messages, chosen, litellm_params={}, headers={})
        body |= body.pop("extra_body", None) or {}
        body.pop("stream", None)
        return as_bytes({"custom_id": key, "method": "POST", "url": _CHAT, "body": body})

    async def submit(self, name: str, requests: IO[bytes]) -> str:
        """The new batch's id. Where that does not come back, `find` tells whether there is one."""
        with self._explained(may_lack_batches=True):
            file = await self._litellm.acreate_file(
                file=(f"{name}.jsonl", requests), purpose="batch", timeout=_TRANSFER_S, **self._there
            )
            batch = await self._litellm.acreate_batch(
                completion_window="24h",
                endpoint=_CHAT,
                input_file_id=file.id,
                metadata={_OURS: name},
                timeout=self._timeout_s,
                **self._there,
            )
        return str(batch.id)

    async def find(self, name: str) -> str | None:
        """The id of the batch that was given this name; None where the provider lists none."""
        after = None
        with self._explained(may_lack_batches=True):
            for _ in range(_PAGES):
                page = await self._litellm.alist_batches(
                    after=after, limit=_PAGE, timeout=self._timeout_s, **self._there
                )
                for batch in page.data:
                    if (batch.metadata or {}).get(_OURS) == name:
                        return str(batch.id)
                if not page.data or not getattr(page, "has_more", False):
                    return None
                after = page.data[-1].id
        return None

    async def state(self, batch_id: str) -> BatchState:
        """How far it is. Kind `unknown_model`: the provider knows no such batch (any more)."""
        with self._explained():
            batch = await self._litellm.aretrieve_batch(batch_id=batch_id, timeout=self._timeout_s, **self._there)
        counts = batch.request_counts
        done = (counts.completed or 0) + (counts.failed or 0) if counts else 0
        files = tuple(filter(None, (batch.output_file_id, batch.error_file_id)))
        if batch.status != "failed":
            return BatchState(batch.status, done, files)
        said = [one.model_dump() for one in (batch.errors.data if batch.errors else None) or []]
        first = said[0] if said else {"message": "the batch failed, and nothing says why"}
        code = str(first.get("code") or "")
        return BatchState("failed", done, files, code, self._error(429 if code == QUEUE_IS_FULL else 400, first))

    async def download(self, file_id: str, into: IO[bytes]) -> None:
        """Write a file of answers, in pieces where LiteLLM streams them."""
        with self._explained():
            content = await self._litellm.afile_content(
                file_id=file_id, stream=True, timeout=_TRANSFER_S, **self._there
            )
            if hasattr(content, "stream_iterator"):
                async for piece in content.stream_iterator:
                    into.write(piece)
            else:
                into.write(content.content)

    def answer(self, line: Mapping[str, Any]) -> Line | ProviderError:
        """The fields of a Reply, or the error, that a line of a file of answers holds."""
        response = _object(line.get("response"))
        body, status = _object(response.get("body")), response.get("status_code")
        if (said := line.get("error") or body.get("error")) or status != 200:
            error = said if isinstance(said, dict) else {"message": str(said or f"status {status}")}
            status = 408 if error.get("code") == "batch_expired" else status
            return self._error(status if isinstance(status, int) and status != 200 else 500, error)
        try:
            reply = _completion(self._litellm, body)
            usage = {"usage": reply.usage, "model": self.model, "custom_llm_provider": self.provider}
            cost = sum(self._litellm.cost_calculator.batch_cost_calculator(**usage))
            return {**fields_of(reply, logprobs="last"), "cost_usd": cost, "model": reply.model or self.model}
        except Exception as unreadable:  # whatever LiteLLM finds wrong with what a provider wrote
            return ProviderError("server", redacted(f"unreadable answer: {words_of(unreadable)}", self._keys))

    def _error(self, status: int, said: Mapping[str, Any]) -> ProviderError:
        """As LiteLLM would understand the same answer to a request of its own."""
        make = self._litellm.llms.openai.common_utils.OpenAIError
        return self._understood(make(status_code=status, message=json.dumps({"error": said}), headers={}))

    def _understood(self, error: Exception) -> ProviderError:
        try:
            self._litellm.exception_type(model=self.model, original_exception=error, custom_llm_provider=self.provider)
        except Exception as understood:  # it raises what it makes of the error
            error = understood
        return ProviderError(kind_of(self._litellm, error), redacted(words_of(error), self._keys))

    @contextlib.contextmanager
    def _explained(self, *, may_lack_batches: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            understood = self._understood(error)
            if may_lack_batches and getattr(error, "status_code", None) in _NO_SUCH_API:
                understood.kind = "no_batches"
            raise understood from None


@functools.cache
def _litellm() -> Any:
    """LiteLLM, with one client of the OpenAI SDK for each server, where it makes one for each call and closes none."""
    litellm = load_litellm()
    for api in (litellm.files.main.openai_files_instance, litellm.batches.main.openai_batches_instance):
        vars(api)["get_openai_client"] = functools.cache(api.get_openai_client)
    return litellm


def _object(said: Any) -> dict[str, Any]:
    return said if isinstance(said, dict) else {}


def _completion(litellm: Any, body: Line) -> Any:
    convert = litellm.litellm_core_utils.llm_response_utils.convert_dict_to_response
    return convert.convert_to_model_response_object(
        response_object=body, model_response_object=litellm.ModelResponse(), _response_headers={}
    )
