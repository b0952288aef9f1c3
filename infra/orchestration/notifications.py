"""The message that people get when a run fails: a Prefect automation and the block that holds its address.

One of the few files in `infra` that import Prefect. The address is a secret: it goes from DISTILFLOW_NOTIFY_URL
into a block of the Prefect server, encrypted there, and through Apprise, which names only its kind in logs.
"""

from __future__ import annotations

import json
import os
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from uuid import UUID

from apprise import Apprise
from prefect.blocks.notifications import SlackWebhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.schemas.automations import Automation, AutomationCore
from pydantic import SecretStr

from infra.errors import ConfigurationError
from infra.processes.environment import NOTIFY as VARIABLE

_BLOCK = "distilflow-notify"


def create_automation(client: SyncPrefectClient) -> tuple[str, str]:
    """Create what is missing, and take over another address; says (what was done, to what)."""
    template = _template()
    what = f"failure notifications ({template['name']!r})"
    existing = next((a for a in client.read_automations() if a.name == template["name"]), None)
    url = os.environ.get(VARIABLE)
    if not url:
        if existing:
            return "as is", what
        return "left out", f"{what}: set {VARIABLE} (Slack or other webhook, or an Apprise address), run it again"
    changed, block = _block(apprise_address(url))
    if existing is None:
        for action in template["actions"]:
            action["block_document_id"] = str(block)
        client.create_automation(AutomationCore.model_validate(template))
        return "created", what
    if _points_to(existing, block):
        return "updated" if changed else "as is", what
    for known in existing.actions:
        if known.type == "send-notification":
            known.block_document_id = block
    client.update_automation(existing.id, AutomationCore.model_validate(existing.model_dump(exclude={"id"})))
    return "updated", what


def apprise_address(url: str) -> str:
    """The address for Apprise: one that it knows, else any web hook's, which gets JSON with a title and a text."""
    if Apprise.instantiate(url) is not None:
        return url
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigurationError(
            f"{VARIABLE} is neither a web address nor one that Apprise knows (https://hooks.slack.com/…, "
            "https://…, mailto://…): see https://github.com/caronc/apprise/wiki"
        )
    query = [(f"-{name}", value) for name, value in parse_qsl(parts.query, keep_blank_values=True)]
    address = urlencode([*query, (":message", "text")], safe=":")  # `text` is what chat servers read
    return urlunsplit(("jsons" if parts.scheme == "https" else "json", parts.netloc, parts.path, address, ""))


def _template() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(resources.files("infra").joinpath("automations/run-failed.json").read_text())
    return loaded


def _block(address: str) -> tuple[bool, UUID]:
    """Whether the block had to be written, and its id. A Slack block takes any Apprise address."""
    try:
        known: Any = SlackWebhook.load(_BLOCK, _sync=True)  # type: ignore[call-arg]
    except ValueError:  # no such block
        known = None
    if known is not None and known.url.get_secret_value() == address:
        return False, known._block_document_id
    block = SlackWebhook(url=SecretStr(address), notify_type="failure")
    saved: Any = block.save(_BLOCK, overwrite=True, _sync=True)  # type: ignore[call-arg]
    return True, saved


def _points_to(automation: Automation, block: UUID) -> bool:
    actions = [action for action in automation.actions if action.type == "send-notification"]
    return all(action.block_document_id == block for action in actions)
