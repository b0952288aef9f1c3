"""The command that makes a run again, and what of its parameters differs from the defaults."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from flows.params import Settings
from tasks.report.data import ChangedSetting

_ALWAYS = ("student", "teacher", "k", "seed")
_ADDRESSES = {"api_base", "server"}  # where a provider answers is the machine's matter, and may hold a key


def command(given: Mapping[str, Any], defaults: Mapping[str, Any], used: Settings, preset: Settings) -> str:
    """`distilflow run …` with student, teacher, k and seed, and with whatever else differs from the defaults.

    `given` holds the plain parameters, `used` the settings, which `preset` has unless somebody changed them.
    """
    words = ["distilflow", "run"]
    for name, value in given.items():
        if name in _ALWAYS or value != defaults[name]:
            words += _flag([_dashed(name)], json.dumps(value) if isinstance(value, dict) else value)
    for field in dataclasses.fields(Settings):
        ours, theirs = (getattr(settings, field.name).model_dump() for settings in (used, preset))
        for parts, value, _ in _differing(ours, theirs):
            words += _flag([field.name, _dashed(parts[0]), *parts[1:]], value)
    return shlex.join(words)


def changed(
    given: Mapping[str, Any], defaults: Mapping[str, Any], used: Settings, preset: Settings
) -> list[ChangedSetting]:
    """The same as settings beside their defaults; student and teacher are what the run is about."""
    plain = [
        ChangedSetting(name=name, value=value, default=defaults[name])
        for name, value in given.items()
        if name not in ("student", "teacher") and value != defaults[name]
    ]
    nested = [
        ChangedSetting(name=".".join([field.name, *parts]), value=value, default=default)
        for field in dataclasses.fields(Settings)
        for parts, value, default in _differing(
            getattr(used, field.name).model_dump(mode="json"), getattr(preset, field.name).model_dump(mode="json")
        )
    ]
    return plain + nested


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[list[str], Any, Any]]:
    """Path, value and default of what differs. What is unset has no flag."""
    for name, value in ours.items():
        if value is None or value == theirs.get(name) or name in _ADDRESSES:
            continue
        if isinstance(value, dict):
            for parts, inner, default in _differing(value, theirs.get(name) or {}):
                yield [name, *parts], inner, default
        else:
            yield [name], value, theirs.get(name)


def _flag(parts: list[str], value: Any) -> list[str]:
    flag = "--" + ".".join(parts)
    if isinstance(value, bool):
        return [flag if value else "--" + ".".join([*parts[:-1], f"no-{parts[-1]}"])]
    if isinstance(value, tuple) and any(isinstance(item, str) for item in value):
        return [word for item in value for word in (flag, item)]
    return [flag, *map(str, value if isinstance(value, tuple) else [value])]


def _dashed(name: str) -> str:
    return name.replace("_", "-")
