"""What an answering line holds, whichever way it came."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tasks.llm.litellm_here import LiteLLMHere
from tasks.llm.protocol import ProviderError, content_of


def test_numbers_of_tokens_are_a_list_also_where_there_was_no_text() -> None:
    assert content_of({"id": 3, "tokens": [4, 0]}) == [4, 0]
    assert content_of({"id": 3, "tokens": []}) == []


def test_an_answer_is_its_fields_and_an_error_is_raised() -> None:
    assert content_of({"id": 3, "text": "a", "cost_usd": 0.0}) == {"text": "a", "cost_usd": 0.0}
    with pytest.raises(ProviderError, match="busy") as failed:
        content_of({"id": 3, "error": {"kind": "rate_limit", "message": "busy"}})
    assert failed.value.kind == "rate_limit"


def test_what_comes_from_this_process_is_what_comes_over_a_pipe() -> None:
    """Half a character would end the stage where the answer is written."""

    class Provider:
        async def answer(self, line: dict[str, Any]) -> dict[str, Any]:
            return {"id": line["id"], "text": "half \ud83d", "last_logprobs": [("a", [("a", -0.1)])]}

    here = LiteLLMHere()
    here._provider = Provider()
    answer = asyncio.run(here.send({"route": "default"}))
    assert answer == {"text": "half ?", "last_logprobs": [["a", [["a", -0.1]]]]}
    answer["text"].encode()
