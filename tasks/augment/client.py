"""Requests to an LLM through LiteLLM: concurrent, retried, validated, and never paid twice.

Every answer is kept in a local SQLite file under the hash of what was asked, so a killed run that starts
again asks only what it had not been told.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import socket
import sqlite3
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pydantic import BaseModel, ValidationError

from infra.errors import ConfigurationError, TransientError
from tasks.augment.agents import Agent, Answer
from tasks.rows import Row

_FENCE = re.compile(r"^\s*```(?:json)?\s*(.*?)\s*```\s*$", re.DOTALL)


class Refused(Exception):
    """The model gave no usable answer to an agent's request, also when asked again."""

    def __init__(self, agent: str, why: str):
        super().__init__(f"no valid answer ({why})")
        self.agent = agent


@dataclass(frozen=True)
class Endpoint:
    """A LiteLLM model name and, for self-hosted ones, its address. The key comes from the environment."""

    model: str
    api_base: str | None = None
    api_key: str | None = field(default=None, repr=False)


@dataclass
class Usage:
    """What a stage asked and was billed for."""

    requests: int = 0
    from_cache: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0


class AnswerCache:
    """Paid-for answers by request hash, safe against a kill at any time."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def get(self, key: str) -> dict[str, Any] | None:
        found = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return json.loads(found[0]) if found else None

    def put(self, key: str, answer: dict[str, Any]) -> None:
        self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))


class LLMClient:
    """Puts rows before agents. One instance a stage; `usage` adds up over its life."""

    def __init__(self, endpoint: Endpoint, cache: AnswerCache, *, concurrency: int, temperature: float):
        self.endpoint = endpoint
        self.usage = Usage()
        self._cache = cache
        self._free = asyncio.Semaphore(concurrency)
        self._temperature = temperature

    def take_usage(self) -> dict[str, float]:
        """What was used since the last call."""
        used, self.usage = self.usage, Usage()
        return asdict(used)

    async def ask(self, agent: Agent[Answer], row: Row, **settings: Any) -> Answer:
        """The agent's validated answer on a row.

        Raises Refused where the model gives none that fits the schema (asked twice), ConfigurationError
        where the provider refuses us, TransientError where it cannot be reached.
        """
        messages = agent.messages(row, **settings)
        for attempt in range(2):
            text = await self._complete(agent, messages, attempt)
            try:
                return agent.answer.model_validate_json(_bare_json(text))
            except ValidationError as error:
                wrong = f"{error.error_count()} errors, first: {error.errors()[0]['msg']}"
                correction = f"That was not the JSON object asked for ({wrong}). Answer with that object alone."
                messages = [
                    *messages,
                    {"role": "assistant", "content": text[:2_000]},
                    {"role": "user", "content": correction},
                ]
        raise Refused(agent.name, wrong)

    async def _complete(self, agent: Agent[Any], messages: list[dict[str, str]], attempt: int) -> str:
        request = {
            "model": self.endpoint.model,
            "messages": messages,
            "temperature": self._temperature,
            "schema": agent.answer.model_json_schema(),
        }
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        answer = self._cache.get(key)
        if answer is None:
            async with self._free:
                answer = await self._request(agent.answer, messages)
            self._cache.put(key, answer)
            self.usage.requests += 1
        else:
            self.usage.from_cache += 1
        self.usage.prompt_tokens += answer["prompt_tokens"]
        self.usage.completion_tokens += answer["completion_tokens"]
        self.usage.cost_usd += answer["cost_usd"]
        return str(answer["text"])

    async def _request(self, schema: type[BaseModel], messages: list[dict[str, str]]) -> dict[str, Any]:
        litellm = _litellm()
        try:
            reply = await litellm.acompletion(
                model=self.endpoint.model,
                api_base=self.endpoint.api_base,
                api_key=self.endpoint.api_key,
                messages=messages,
                temperature=self._temperature,
                response_format=schema,
                num_retries=4,
                timeout=120,
            )
        except (litellm.AuthenticationError, litellm.PermissionDeniedError) as error:
            raise ConfigurationError(
                f"the provider of {self.endpoint.model!r} refused the key: set its key in the environment "
                "(OPENAI_API_KEY, ANTHROPIC_API_KEY …)"
            ) from error
        except (litellm.NotFoundError, litellm.BadRequestError) as error:
            raise ConfigurationError(
                f"{self.endpoint.model!r} does not take the request: {_first_line(error)}"
            ) from error
        except (litellm.APIConnectionError, litellm.Timeout, litellm.InternalServerError) as error:
            where = self.endpoint.api_base or "its provider"
            raise TransientError(
                f"the LLM {self.endpoint.model!r} at {where} cannot be reached ({type(error).__name__}): "
                "check the address and the server; answers so far are kept"
            ) from error
        except (litellm.RateLimitError, litellm.ServiceUnavailableError, litellm.APIError) as error:
            raise TransientError(
                f"the LLM {self.endpoint.model!r} answered {type(error).__name__} again and again: "
                "run again later or lower `augmentation.concurrency`; answers so far are kept"
            ) from error
        return {
            "text": reply.choices[0].message.content or "",
            "prompt_tokens": reply.usage.prompt_tokens,
            "completion_tokens": reply.usage.completion_tokens,
            "cost_usd": reply._hidden_params.get("response_cost") or 0.0,
        }


def check_endpoint(endpoint: Endpoint) -> None:
    """Refuse, before the first request, a provider without its key or an address where nobody answers."""
    litellm = _litellm()
    try:
        needed = litellm.validate_environment(endpoint.model, api_base=endpoint.api_base)
        litellm.get_llm_provider(endpoint.model)
    except litellm.BadRequestError as error:
        raise ConfigurationError(
            f"agent_model {endpoint.model!r} is no LiteLLM model name: use PROVIDER/MODEL, such as openai/gpt-4o"
        ) from error
    if not needed["keys_in_environment"] and endpoint.api_base is None:
        keys = ", ".join(needed["missing_keys"])
        raise ConfigurationError(f"agent_model {endpoint.model!r} needs its provider's key: set {keys}")
    if endpoint.api_base is None:
        return
    address = urlparse(endpoint.api_base)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=10).close()
    except OSError as error:
        raise ConfigurationError(
            f"no LLM answers at {endpoint.api_base} ({error.strerror or error}): check augmentation.api_base "
            "and that the server runs"
        ) from error


def _litellm() -> Any:
    """LiteLLM, quiet, and without its fetch of a price map at import."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_LOG", "ERROR")
    import litellm

    litellm.suppress_debug_info = True
    litellm.drop_params = True
    litellm.telemetry = False
    # cancelled in mid-call, as on a provider's failure, it drops a coroutine of its own; ours is the error to show
    warnings.filterwarnings("ignore", message="coroutine '.*acompletion' was never awaited", category=RuntimeWarning)
    return litellm


def _bare_json(text: str) -> str:
    fenced = _FENCE.match(text)
    return fenced.group(1) if fenced else text


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300]
