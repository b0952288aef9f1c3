"""What a server takes of a request, found out by asking: a JSON schema, JSON mode or the prompt alone, and the rest.

A server that refuses something is asked without it; what then succeeds is remembered for the requests that follow
with the same schema, for servers take some schemas and not others.
A refused request costs nothing, and one row that a server refuses for its own sake changes nothing for the others.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

Line = dict[str, Any]

_WEAKER = {"schema": "json", "json": "prompt"}
_OF_FORMAT = re.compile(
    r"response_?format|json[_ ]?(?:schema|object|mode)|structured|guided|grammar|\bschema\b", re.IGNORECASE
)
_UNSUPPORTED = re.compile(r"(?:un|not |n't )support|unrecogni[sz]ed|unknown|extra input|not permitted", re.IGNORECASE)
_NO_SYSTEM = re.compile(
    r"system (?:role|message|prompt)s? (?:is |are )?not supported|roles must alternate", re.IGNORECASE
)
_MAY_REFUSE = ("bad_request", "server", "unknown_model")


@dataclass(frozen=True)
class Form:
    """How a deployment is asked. `proven`: it has answered so."""

    mode: str  # schema, json, prompt
    refused: frozenset[str] = frozenset()  # parameters that it does not know
    system: bool = True  # whether it takes a system message
    proven: bool = False

    def of(self, request: Line) -> Line:
        """The arguments of the request's completion."""
        parameters = {name: request[name] for name in ("temperature", "max_tokens") if request.get(name) is not None}
        if request.get("top_logprobs"):
            parameters |= {"logprobs": True, "top_logprobs": request["top_logprobs"]}
        asked = {name: value for name, value in parameters.items() if name not in self.refused}
        if "max_tokens" in self.refused:
            asked["max_completion_tokens"] = parameters["max_tokens"]
        return {**asked, "response_format": self._response_format(request)}

    def messages(self, request: Line) -> list[Line]:
        first, *others = request["messages"]
        if self.system or first["role"] != "system" or not others:
            return request["messages"]
        return [{**others[0], "content": f"{first['content']}\n\n{others[0]['content']}"}, *others[1:]]

    def without(self, kind: str, words: str, request: Line) -> Form | None:
        """The form to try after a refusal in these words; None where asking otherwise would not help."""
        if kind not in _MAY_REFUSE:
            return None
        if _UNSUPPORTED.search(words):
            for name in ("max_tokens", "temperature", "logprobs"):
                if name in words and name not in self.refused and request.get(name.replace("logprobs", "top_logprobs")):
                    also = {"logprobs": {"top_logprobs"}}.get(name, set())
                    return dataclasses.replace(self, refused=self.refused | {name} | also)
        if self.system and _NO_SYSTEM.search(words):
            return dataclasses.replace(self, system=False)
        is_the_format = _OF_FORMAT.search(words) or (kind == "bad_request" and not self.proven)
        if request.get("schema") is not None and self.mode in _WEAKER and is_the_format:
            return dataclasses.replace(self, mode=_WEAKER[self.mode])
        return None

    def _response_format(self, request: Line) -> Line | None:
        if request.get("schema") is None or self.mode == "prompt":
            return None
        if self.mode == "json":
            return {"type": "json_object"}
        schema = {"name": request["schema_name"], "schema": request["schema"], "strict": True}
        return {"type": "json_schema", "json_schema": schema}
