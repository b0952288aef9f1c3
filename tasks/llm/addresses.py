"""Where LLMs answer: which server that is, how messages name it, and whether anybody is there."""

from __future__ import annotations

import os
import re
import socket
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from infra.errors import TransientError
from tasks.shipped import llm_named

_ADDRESS_OF = r"(?:{})_(?:\w+_)?(?:API_BASE|BASE_URL|API_URL|ENDPOINT)"  # a provider's, in the environment
# no user and password before the host, and no parameter that is called like a key
_KEYLESS = (
    r"^(?!\w+://[^/?#]*@)"
    r"(?!.*[?&](?:[\w-]*[_-])?(?:[Kk]ey|KEY|[Tt]oken|TOKEN|[Ss]ecret|SECRET|[Pp]assword|PASSWORD|sig|signature|code)=)"
)
_DEFAULT_PORT = {"http": ":80", "https": ":443"}


def server_of(model: str, api_base: str | None) -> str:
    """The server that answers for a model: by `api_base`, else as the environment tells LiteLLM, else empty.

    One server has one name, however its address is written; a password is no part of it. One of ours is the same
    program wherever it runs, on another port each time.
    """
    if ours := llm_named(model):
        return ours
    if api_base:
        address = urlsplit(api_base)
        host = address.netloc.rpartition("@")[2].lower().removesuffix(_DEFAULT_PORT.get(address.scheme, ":"))
        return f"{host}{address.path.rstrip('/')}?{address.query}".rstrip("?") or api_base
    provider, named, _ = model.partition("/")
    pattern = _ADDRESS_OF.format(re.escape(provider.upper().replace("-", "_")) if named else "OPENAI|ANTHROPIC")
    servers = {server_of(model, value) for name, value in os.environ.items() if value and re.fullmatch(pattern, name)}
    return ",".join(sorted(servers))


def _without_key(address: str) -> str:
    if not re.match(_KEYLESS, address):
        raise ValueError(
            "it holds a key or a password, which would stand in records and in the UI: "
            "put that into the environment (OPENAI_API_KEY, …), and the address without it here"
        )
    return address


# An address that may be written down; Prefect's server refuses another before it stores it.
Address = Annotated[str, AfterValidator(_without_key), Field(json_schema_extra={"pattern": _KEYLESS})]


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
            f"the LLM at {api_base} cannot be reached ({error.strerror or error}): "
            f"check {setting}.api_base and that the server runs"
        ) from error
