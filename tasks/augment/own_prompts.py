"""The agents' prompts: those that are shipped, or the user's own in their place.

A user's prompt is a Jinja template, rendered in a sandbox, that asks for the same JSON and is told the same settings.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from infra.errors import ConfigurationError
from infra.store import storage
from tasks.augment.agents import AGENTS, COMPARISON, NAMING
from tasks.llm.agent import Agent
from tasks.llm.budget import UsageByAgent
from tasks.llm.client import LLMClient
from tasks.rows import Row

_END = ".jinja"
_LONGEST = 100_000  # bytes
_SHIPPED: tuple[Agent[Any], ...] = (NAMING, COMPARISON, *AGENTS)


class Prompts:
    """The agents with the prompts of a folder or s3:// prefix in place of their own.

    Raises ConfigurationError that names a file which is no prompt of an agent, or does not say what it must.
    """

    def __init__(self, folder: str | None = None):
        own = {agent.name: _own(agent, text) for agent, text in _read(folder)} if folder else {}
        self._agents: Mapping[str, Agent[Any]] = {agent.name: own.get(agent.name, agent) for agent in _SHIPPED}

    def __getitem__(self, agent: Agent[Any]) -> Agent[Any]:
        return self._agents[agent.name]

    @property
    def agents(self) -> tuple[Agent[Any], ...]:
        """Those that work on rows, in order."""
        return tuple(self[agent] for agent in AGENTS)

    async def ask(self, client: LLMClient, usage: UsageByAgent, agent: Agent[Any], row: Row, **settings: Any) -> Any:
        """As `client.ask`, by these prompts."""
        return await client.ask(usage, self[agent], row, **settings)


@functools.lru_cache(maxsize=8)
def prompts_of(folder: str | None) -> Prompts:
    """Read once a process: a run works by the prompts that it began with."""
    return Prompts(folder)


def write(folder: Path) -> list[Path]:
    """The shipped prompts as files to edit; ConfigurationError where one is there already."""
    paths = {folder / f"{agent.name}{_END}": agent.prompt for agent in _SHIPPED}
    if there := [path.name for path in paths if path.exists()]:
        raise ConfigurationError(f"{folder} holds {there[0]} already: name another folder, or take the file away")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in paths.items():
        path.write_text(text)
    return list(paths)


def _read(folder: str) -> list[tuple[Agent[Any], str]]:
    known = {agent.name: agent for agent in _SHIPPED}
    found = {name: text for name, text in _files(folder).items() if name.endswith(_END)}
    if not found:
        raise ConfigurationError(
            f"augmentation.prompts: {folder} holds no {_END} files: `distilflow prompts` writes some"
        )
    if others := sorted(name for name in found if name.removesuffix(_END) not in known):
        raise ConfigurationError(
            f"augmentation.prompts: {others[0]} in {folder} is the prompt of no agent (there are {', '.join(known)})"
        )
    return [(known[name.removesuffix(_END)], _text(folder, name, data)) for name, data in sorted(found.items())]


def _files(folder: str) -> dict[str, bytes]:
    """The files directly in a folder or below a prefix, by name."""
    if folder.startswith("s3://"):
        prefix = f"{folder.rstrip('/')}/"
        return {name: storage.get(prefix + name) or b"" for name in storage.keys(prefix) if "/" not in name}
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ConfigurationError(f"augmentation.prompts: there is no folder {folder!r}")
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.is_file()}


def _text(folder: str, name: str, data: bytes) -> str:
    try:
        text = data[: _LONGEST + 1].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"augmentation.prompts: {name} in {folder} is no UTF-8 text: save it in UTF-8"
        ) from error
    if not text.strip() or len(data) > _LONGEST:
        what = "is empty" if not text.strip() else f"is longer than {_LONGEST:,} bytes"
        raise ConfigurationError(f"augmentation.prompts: {name} in {folder} {what}")
    return text


def _own(agent: Agent[Any], text: str) -> Agent[Any]:
    """The agent with the user's prompt, which must use what the agent is told and name what it must answer."""
    own = dataclasses.replace(agent, template=text)
    where = f"augmentation.prompts: {agent.name}{_END}"
    try:
        asked = own.settings
    except TemplateSyntaxError as error:
        raise ConfigurationError(f"{where}, line {error.lineno}: no template ({error.message})") from error
    if unknown := sorted(asked - agent.settings):
        told = ", ".join(sorted(agent.settings)) or "nothing"
        raise ConfigurationError(
            f"{where} asks for {{{{ {unknown[0]} }}}}, which the agent is not told (it is told {told})"
        )
    if missing := sorted(agent.settings - asked):
        raise ConfigurationError(
            f"{where} does not use {{{{ {missing[0]} }}}}, without which the agent cannot know what to do"
        )
    if unnamed := [field for field in agent.answer.model_fields if field not in text]:
        raise ConfigurationError(f'{where} does not ask for the field "{unnamed[0]}" of the answer\'s JSON object')
    return own
