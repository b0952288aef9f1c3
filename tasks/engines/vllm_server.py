"""A `vllm serve` that runs elsewhere: what is asked of it over HTTP, with patience, and what its refusals mean."""

from __future__ import annotations

import itertools
import os
import time
from http import HTTPStatus
from typing import Any

import httpx

from infra.errors import ConfigurationError, TransientError

KEY = "VLLM_API_KEY"  # the variable that vLLM's own server reads
_PASSES = {408, 425, 429, 500, 502, 503, 504}  # statuses that are others another time
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0)  # as the Router's of LLMs
_LONGEST_PAUSE_S = 60.0  # that a server may ask for
_KEY_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_ABSENT = {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED}
_TIMEOUT = httpx.Timeout(600.0, connect=10.0)  # a row waits behind all others that the server has
_WORDS = 300  # characters of what a server says


class RefusedError(ConfigurationError):
    """The server takes this request from nobody: `said` is its own reason."""

    def __init__(self, where: str, said: str):
        super().__init__(f"{where} refuses what it is asked: {said}")
        self.said = said


class VLLMServer:
    """The server at an address, with or without the `/v1` that clients of OpenAI write; any thread may ask it.

    `patient`: what passes (5xx, 429, timeouts, a connection that is refused or breaks) is tried seven times again. In
    the end it is a TransientError; whatever else is no answer is a ConfigurationError.
    """

    def __init__(self, address: str, *, patient: bool = True):
        self.address = address.rstrip("/").removesuffix("/v1")
        self.where = f"the server at {self.address}"
        self._pauses = _PAUSES_S if patient else ()
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=self.address, headers=headers, timeout=_TIMEOUT)

    def models(self) -> list[dict[str, Any]]:
        """What it serves: `id`, `root` (where its weights are from), `max_model_len`."""
        listed = self._asked("GET", "/v1/models")
        found = listed.get("data") if listed else None
        if not isinstance(found, list) or not all(isinstance(model, dict) and "id" in model for model in found):
            raise ConfigurationError(self.foreign("lists no models"))
        return found

    def tokenized(self, model: str, text: str) -> list[int] | None:
        """The ids of a text, None where the server does not say."""
        asked = {"model": model, "prompt": text, "add_special_tokens": False}
        answer = self._asked("POST", "/tokenize", asked)
        return None if answer is None else answer.get("tokens")

    def prompt_logprobs(self, model: str, ids: list[int], k: int) -> list[dict[str, Any] | None]:
        """For each token after the first, by id, its own log-prob and those of the `k` most likely: `logprob`, `rank`.

        Raises RefusedError where the server takes no such request.
        """
        asked = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": k}
        answer = self._asked("POST", "/v1/completions", asked)
        choices = answer.get("choices") if answer else None
        found = choices[0].get("prompt_logprobs") if choices else None
        if not isinstance(found, list) or len(found) != len(ids):
            raise ConfigurationError(self.foreign("gives no prompt_logprobs"))
        return found

    def foreign(self, what: str) -> str:
        """What is said of a server that answers as vLLM does not."""
        return f"{self.where} {what}: scoring.server has to be the address of a `vllm serve`, such as http://gpu-1:8000"

    def close(self) -> None:
        self._client.close()

    def _asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Its JSON; None where it has no such path."""
        response = self._patiently(method, path, body)
        if response.status_code in _KEY_REFUSED and path.startswith("/v1"):
            wrong = f"refuses the key in {KEY}" if os.environ.get(KEY) else f"wants a key: put it into {KEY}"
            raise ConfigurationError(f"{self.where} {wrong}")
        if response.status_code in _ABSENT:
            return None
        if response.status_code != HTTPStatus.OK:
            raise RefusedError(self.where, said_by(response))
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ConfigurationError(self.foreign(f"answers {path} with something else than JSON"))
        return answer

    def _patiently(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        for pause in itertools.chain(self._pauses, (None,)):
            asked_for = 0.0
            try:
                response = self._client.request(method, path, json=body)
            except httpx.UnsupportedProtocol as error:
                raise ConfigurationError(self.foreign("cannot be asked")) from error
            except httpx.TransportError as error:
                why = f"cannot be reached ({type(error).__name__}: {error})"
            else:
                if response.status_code not in _PASSES:
                    return response
                why = f"answers {response.status_code} ({said_by(response)})"
                wanted = response.headers.get("Retry-After", "")
                asked_for = min(float(wanted), _LONGEST_PAUSE_S) if wanted.isdigit() else 0.0
            if pause is not None:
                time.sleep(max(pause, asked_for))
        raise TransientError(f"{self.where} {why}: check scoring.server and that it runs; what was scored is kept")


def said_by(response: httpx.Response) -> str:
    """The server's own words, in one line."""
    try:
        told = response.json()
        error = told.get("error", told)
        text = error if isinstance(error, str) else error.get("message") or str(told)
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(text.split())[:_WORDS] or response.reason_phrase
