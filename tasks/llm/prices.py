"""What a token of a route costs: as LiteLLM knows it, or as the user says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infra.errors import ConfigurationError
from tasks.llm.settings import LLMCalls

_IN_BATCHES = 0.5  # of the price, at providers with a batch API; LiteLLM's own prices of batches are used where known


def price_of(models: Sequence[dict[str, Any]], options: LLMCalls) -> tuple[float, float]:
    """The dearest of a route's models, in $ a token of prompt and of answer.

    Raises ConfigurationError where there is a budget, and a price that nobody knows.
    """
    own = options.usd_per_million_tokens
    if own is not None and not models[0]["priced"]:
        share = _IN_BATCHES if options.batch else 1.0
        return share * own[0] / 1e6, share * own[1] / 1e6
    unknown = [model["model"] for model in models if not model["priced"]]
    if options.budget_usd is not None and unknown:
        raise ConfigurationError(
            f"{options.setting}.budget_usd needs the price of {unknown[0]!r}, which LiteLLM does not know: "
            f"set {options.setting}.usd_per_million_tokens"
        )
    return (
        max(model["usd_per_input_token"] for model in models),
        max(model["usd_per_output_token"] for model in models),
    )
