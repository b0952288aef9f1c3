"""What asking a teacher behind an API will take, from examples of the rows; nothing is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tasks.llm.budget import Usage
from tasks.llm.protocol import LLMEndpoint
from tasks.llm.session import connected
from tasks.logits.api.settings import TeacherCalls
from tasks.rows import Row

_TYPICAL = "word " * 200  # an answer, where no example has one


def usage_of(examples: Sequence[Row], rows: int, calls: TeacherCalls, endpoint: LLMEndpoint) -> Usage:
    """Requests, tokens and $ of `rows` like the examples, answers as long as theirs; 0 $ where nobody knows a price.

    Raises ConfigurationError for a model or an address that cannot be, and for a budget without a price.
    """
    return asyncio.run(_usage_of(examples, rows, calls, endpoint))


async def _usage_of(examples: Sequence[Row], rows: int, calls: TeacherCalls, endpoint: LLMEndpoint) -> Usage:
    answers = [row.response for row in examples if row.response] or [_TYPICAL]
    prompts = ["\n".join(message.content for message in row.prompt) for row in examples]
    async with connected(endpoint, calls) as client:
        price = await client.price(endpoint.model)
        asked = await client.tokens(endpoint.model, prompts)
        said = [min(tokens, calls.max_output_tokens) for tokens in await client.tokens(endpoint.model, answers)]
    prompt, answer = (round(rows * sum(tokens) / max(len(tokens), 1)) for tokens in (asked, said))
    return Usage(rows, 0, prompt, answer, prompt * price[0] + answer * price[1])
