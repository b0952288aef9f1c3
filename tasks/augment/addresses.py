"""Where LLMs answer: which server that is, how messages name it, and whether anybody is there."""

from __future__ import annotations

import os
import re
import socket
from urllib.parse import urlsplit

from infra.demo import endpoint as demo
from infra.errors import TransientError

_ADDRESS_OF = r"(?:{})_(?:\w+_)?(?:API_BASE|BASE_URL|API_URL|ENDPOINT)"  # a provider's, in the environment
_DEFAULT_PORT = {"http": ":80", "https": ":443"}


def server_of(model: str, api_base: str | None) -> str:
    """The server that answers for a model: by `api_base`, else as the environment tells LiteLLM, else empty.

    One server has one name, however its address is written; a password is no part of it. The demo's is the same program
    wherever it runs, on another port each time.
    """
    if model == demo.MODEL:
        return "demo"
    if api_base:
        address = urlsplit(api_base)
        host = address.netloc.rpartition("@")[2].lower().removesuffix(_DEFAULT_PORT.get(address.scheme, ":"))
        return f"{host}{address.path.rstrip('/')}?{address.query}".rstrip("?") or api_base
    provider, named, _ = model.partition("/")
    pattern = _ADDRESS_OF.format(re.escape(provider.upper().replace("-", "_")) if named else "OPENAI|ANTHROPIC")
    told = {server_of(model, value) for name, value in os.environ.items() if value and re.fullmatch(pattern, name)}
    return ",".join(sorted(told))


def without_password(api_base: str) -> str:
    """The address as a message may show it."""
    address = urlsplit(api_base)
    return address._replace(netloc=address.netloc.rpartition("@")[2], query="").geturl()


def check_address(api_base: str | None, setting: str) -> None:
    """Refuse an address where nobody answers before anything is sent there."""
    if api_base is None:
        return
    address = urlsplit(api_base)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=10).close()
    except OSError as error:
        raise TransientError(
            f"the LLM at {without_password(api_base)} cannot be reached ({error.strerror or error}): "
            f"check {setting}.api_base and that the server runs"
        ) from error
