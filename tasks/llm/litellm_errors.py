"""What a provider's failure is, from LiteLLM's exceptions and the provider's own words."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

# Nothing is left, until somebody pays; a limit of a minute's goes by.
_USED_UP = re.compile(
    r"insufficient[_ ](?:\w+[_ ])?(?:quota|balance|credits?|funds)|exceeded your current quota|payment required"
    r"|(?:quota|credits?|balance|budget|free tier)[^.]{0,60}\b(?:exhausted|used up|too low|depleted)"
    r"|(?:used all|out of|requires more|not enough)\b[^.]{0,30}\bcredits?|(?:billing|spend\w*|credit|usage|budget)"
    r"[^.]{0,20}\blimit[^.]{0,20}\b(?:reached|exceeded)|reached [^.]{0,30}(?:spend\w*|billing|credit) limit|arrearage"
    r"|余额不足|欠费",
    re.IGNORECASE,
)
_GOES_BY = re.compile(r"per[ _-]?(?:second|minute)|(?:retry|try again) (?:in|after|later)|retry_?delay", re.IGNORECASE)
_DECLINED = re.compile(r"content[ _-]?(?:policy|filter|management)|moderation|flagged|safety system", re.IGNORECASE)
_LITELLMS = re.compile(r"^(?:litellm\.\w+: )?(?:\w+(?:Error|Exception)(?:: | - ))*")
_AFTERWARDS = re.compile(r"\s*(?:LiteLLM Retried: |Traceback \(most recent).*", re.DOTALL)


def kind_of(litellm: Any, error: BaseException) -> str:
    """Which of the protocol's kinds an exception of LiteLLM is."""
    import httpx
    import openai

    if is_quota(error):
        return "quota"
    if is_unreadable(error):
        return "server"
    kinds: list[tuple[Any, str]] = [
        (litellm.ContextWindowExceededError, "context_window"),
        (litellm.ContentPolicyViolationError, "content_policy"),
        ((litellm.AuthenticationError, litellm.PermissionDeniedError), "refused_key"),
        (litellm.NotFoundError, "unknown_model"),
        (litellm.RateLimitError, "rate_limit"),
        ((litellm.Timeout, asyncio.TimeoutError), "timeout"),
        ((litellm.BadRequestError, litellm.UnprocessableEntityError), "bad_request"),
        (litellm.APIConnectionError, "unreachable"),
    ]
    for types, kind in kinds:
        if isinstance(error, types):
            return "content_policy" if kind == "bad_request" and _DECLINED.search(words_of(error)) else kind
    # LiteLLM makes "internal server errors" of connections that fail or break; what went wrong is further down
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, httpx.TransportError | openai.APIConnectionError | ConnectionError):
            return "unreachable"
        seen = seen.__cause__ or seen.__context__
    return "server"


def is_quota(error: BaseException) -> bool:
    """Whether the account has nothing left, which no waiting helps; providers say so with 400, 402, 403 or 429."""
    status = getattr(error, "status_code", None)
    if status == 402:
        return True
    words = str(error)
    return status in (400, 403, 429) and bool(_USED_UP.search(words)) and not _GOES_BY.search(words)


def is_unreadable(error: BaseException) -> bool:
    """Whether there was an answer, paid for, that LiteLLM cannot read: asking again at once gives the like."""
    return "Invalid response object" in str(error)


def words_of(error: BaseException) -> str:
    """What the provider said, without what LiteLLM puts around it."""
    words = _AFTERWARDS.sub("", _LITELLMS.sub("", str(error))).strip()
    try:
        body = json.loads(words)
        body = body.get("error", body)
        said = body if isinstance(body, str) else body["message"]
        code = "" if isinstance(body, str) or body.get("code") in (None, "", said) else f" ({body['code']})"
        return f"{said}{code}"
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return words or type(error).__name__


def retry_after_s(error: Exception) -> float | None:
    headers = getattr(error, "litellm_response_headers", None) or getattr(
        getattr(error, "response", None), "headers", None
    )
    try:
        return float((headers or {})["retry-after"])
    except (KeyError, ValueError):  # absent, or a date
        return None
