"""Where requests go: a provider that LiteLLM knows, or a server of ours, which is started for the stage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from tasks.llm.own_server import serving
from tasks.llm.protocol import LLMEndpoint
from tasks.llm.settings import LLMCalls
from tasks.shipped import LLMS


def provider_limit(model: str, api_base: str | None = None) -> str:
    """The limit of a LiteLLM model's provider; a self-hosted endpoint is a provider of its own."""
    if api_base:
        address = urlsplit(api_base)
        return f"llm-{address.hostname}" + (f"-{address.port}" if address.port else "")
    provider, slash, _ = model.partition("/")
    return f"llm-{provider if slash else 'other'}"


def provider_slots(model: str, options: LLMCalls) -> dict[str, int]:
    """Requests in flight that are held of each provider's limit; none of servers of ours, nor of batches."""
    if model in LLMS or options.batch:
        return {}
    limits = {provider_limit(model, options.api_base)}
    limits |= {provider_limit(other) for other in (*options.other_models, *options.fallbacks)}
    return dict.fromkeys(limits, options.concurrency)


@contextlib.contextmanager
def llm_endpoint(model: str, options: LLMCalls, note: Callable[[str], None]) -> Iterator[LLMEndpoint]:
    """Where requests go, for the length of the `with`."""
    if model not in LLMS:
        yield LLMEndpoint(model, options.api_base)
        return
    note(LLMS[model].label)
    with serving(model) as endpoint:
        yield endpoint
