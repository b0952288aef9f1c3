"""What a provider's failure means, in a sentence for the user with the provider's own words: for a row, or for all."""

from __future__ import annotations

from infra.errors import ConfigurationError, DistilflowError, TransientError
from tasks.llm.protocol import ProviderError
from tasks.llm.settings import LLMCalls
from tasks.llm.usefulness import NoAnswer

CUT_OFF = "cut off at max_output_tokens"
OF_ONE_ROW = {"content_policy", "context_window"}  # say nothing of other rows
_REASONS = {
    "content_policy": "declined by the provider",
    "context_window": "too long for the model",
    "bad_request": "refused by the provider",
    "rate_limit": "no answer (rate limit)",
    "timeout": "no answer (timeout)",
    "unreachable": "no answer (connection)",
    "server": "no answer (server error)",
}
_ADVICE = {
    "rate_limit": "lower `{setting}.concurrency`, or set `{setting}.requests_per_minute`",
    "timeout": "raise `{setting}.timeout_s`, or lower `{setting}.concurrency`",
    "unreachable": "check the address and that the server runs",
    "server": "check the server, or lower `{setting}.concurrency`",
}


def of_a_row(error: ProviderError, agent: str) -> NoAnswer:
    """The row gets no answer."""
    return NoAnswer(agent, _REASONS[error.kind], str(error), transient=error.kind in _ADVICE)


def at_once(error: ProviderError, model: str, where: str, options: LLMCalls) -> ConfigurationError | None:
    """What any other row would meet too, so that the first one ends the stage."""
    match error.kind:
        case "refused_key":
            return ConfigurationError(
                f"the provider of {model!r} refused the key ({error}): set its key in the environment "
                "(OPENAI_API_KEY, ANTHROPIC_API_KEY …)"
            )
        case "unknown_model":
            return ConfigurationError(f"{where} does not exist for its provider: {error}")
        case "quota":
            return ConfigurationError(
                f"the quota or credit for {where} is used up ({error}): add some with the provider, or choose another "
                f"`{options.model_setting}`; answers so far are kept, run again"
            )
        case "no_batches":
            return ConfigurationError(
                f"{where} cannot be asked in batches ({error}): leave `{options.setting}.batch` off, or choose another "
                f"`{options.model_setting}`"
            )
    return None


def at_last(error: ProviderError, where: str, options: LLMCalls) -> DistilflowError:
    """What many requests in a row have met."""
    if error.kind == "bad_request":
        return ConfigurationError(f"{where} does not take our requests: {error}")
    why = _REASONS[error.kind].removeprefix("no answer ").strip("()")
    advice = _ADVICE[error.kind].format(setting=options.setting)
    return TransientError(
        f"{where} cannot be reached or fails again and again ({why}: {error}): {advice}; "
        "answers so far are kept, run again"
    )


def hopeless(agent: str, where: str, counts: str, last: NoAnswer, options: LLMCalls) -> DistilflowError:
    """Asking is of no use: `counts` says what came of the rows so far."""
    advice = f"choose another `{options.model_setting}`"
    if CUT_OFF in str(last):
        advice = f"raise `{options.setting}.max_output_tokens`, or {advice}"
    error = TransientError if last.transient else ConfigurationError
    return error(
        f"the {agent} agent gets no usable answers from {where} ({counts}); the last one: {last}; {advice}; "
        "usable answers are kept, run again"
    )
