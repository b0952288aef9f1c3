"""`python -m docs.site.settings_page` writes docs/settings.md: every setting of a run, from the models that hold them.

Descriptions, bounds and defaults are those of --help and of the run form, so there is one place to change them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flows.commands import main
from flows.distill import distill
from flows.params import PRESETS, preset_for
from flows.sweep import sweep
from tasks.plan.hardware import Hardware

PAGE = Path(__file__).parents[1] / "settings.md"
ENVIRONMENT = {
    "DISTILFLOW_HOME": "folder of all local state (`.distilflow`)",
    "DISTILFLOW_BUCKET": "bucket that artifacts live in (`distilflow`)",
    "DISTILFLOW_S3_ADDRESSING": "`path` or `virtual`: how buckets are addressed (`path` at an endpoint of your own)",
    "DISTILFLOW_PASS": "names of variables, with commas between and `*` at their ends, that engines are told too",
    "DISTILFLOW_NOTIFY_URL": "where `distilflow bootstrap` lets failed runs be told: a webhook or an Apprise address",
    "DISTILFLOW_RETRY_DELAYS_S": "seconds to wait before each new try of a stage that failed in passing (`5,30`)",
    "DISTILFLOW_MIN_FREE_MIB": "free space under which a run refuses to start (`512`)",
    "AWS_ENDPOINT_URL_S3": "storage; without it SeaweedFS is started. `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, "
    "`AWS_DEFAULT_REGION`, `AWS_PROFILE`, `AWS_MAX_ATTEMPTS` and `AWS_CA_BUNDLE` as boto3 reads them",
    "PREFECT_API_URL": "Prefect; without it a server is started. `PREFECT_API_AUTH_STRING` is its password",
    "HF_HOME": "models of the hub; `HF_TOKEN` opens those that are not public",
    "OPENAI_API_KEY": "and `ANTHROPIC_API_KEY`, …: keys of providers, as LiteLLM reads them",
    "VLLM_API_KEY": "key of a vLLM elsewhere that scores (`scoring.engine=server`)",
    "TORCH_EXTENSIONS_DIR": "where DeepSpeed's compiled extensions lie (with the environment that they were built for)",
}
_HEAD = """# Settings

Written by `python -m docs.site.settings_page` from the settings themselves; a test compares. Each is a flag of
`distilflow run` (`--kd.temperature 2`), a field of the run form, a parameter of the deployments, and a key of a sweep's
`others` and `shared` (`kd.temperature`). A switch is turned off by `no-` before its name
(`--augmentation.no-enabled`). The default is that of the paper's students; *demo* is named where the demo's differs.
"""


def page() -> str:
    """The whole page."""
    parts = [_HEAD, "## The run\n", _of_flow(distill), *_nested()]
    parts += ["## Sweeps\n", "Flags of `distilflow sweep`.\n", _of_flow(sweep)]
    parts += ["## Commands\n", _table(("command", "what"), _commands())]
    parts += ["## Environment\n", _table(("variable", "what"), ((f"`{k}`", v) for k, v in ENVIRONMENT.items()))]
    return "\n".join(parts)


def _of_flow(flow: Any) -> str:
    """A flow's own parameters; those that hold others have a section each."""
    function = flow.fn
    texts = _arguments(inspect.getdoc(function) or "")
    rows = []
    for name, parameter in inspect.signature(function).parameters.items():
        default = "" if parameter.default is None else _shown(parameter.default)
        rows.append((f"`--{_dashed(name)}`", default, texts[name]))
    return _table(("flag", "default", "what"), rows)


def _nested() -> Iterator[str]:
    paper, demo = vars(preset_for("")), vars(PRESETS["demo"])
    for name, settings in {**paper, "hardware": Hardware()}.items():
        yield f"## {name}\n"
        yield f"{(type(settings).__doc__ or '').splitlines()[0]}\n"
        yield _table(("flag", "takes", "default", "what"), _fields(name, settings, demo.get(name, settings)))


def _fields(prefix: str, settings: BaseModel, demo: BaseModel) -> Iterator[tuple[str, str, str, str]]:
    schema = type(settings).model_json_schema()
    for name, about in schema["properties"].items():
        ours, theirs = getattr(settings, name), getattr(demo, name)
        default = _shown(ours) + (f" (demo: {_shown(theirs)})" if theirs != ours else "")
        flag = f"`--{prefix}.{_dashed(name)}`"
        yield flag, _takes(about, schema.get("$defs", {})), default, about["description"]
        for nested in _objects(about, schema.get("$defs", {})):
            for inner, told in nested["properties"].items():
                takes = _takes(told, schema["$defs"])
                yield f"{flag[:-1]}.{_dashed(inner)}`", takes, _shown(told["default"]), told["description"]


def _objects(about: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for kind in about.get("anyOf", [about]):
        found = models.get(kind.get("$ref", "").rpartition("/")[2], {})
        if "properties" in found:
            yield found


def _takes(about: Mapping[str, Any], models: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "anyOf" in about:
        return " or ".join(filter(None, (_takes(kind, models) for kind in about["anyOf"])))
    if "$ref" in about:
        return _takes(models[about["$ref"].rpartition("/")[2]], models)
    if "enum" in about:
        return ", ".join(f"`{value}`" for value in about["enum"])
    if "const" in about:
        return f"`{about['const']}`"
    match about.get("type"):
        case "boolean":
            return "on, off"
        case "array":
            return "several"
        case "object":
            return "the settings below" if "properties" in about else "key and value"
        case "string":
            return "text"
        case "null" | None:
            return ""
        case kind:
            return _bounds("whole number" if kind == "integer" else str(kind), about)


def _bounds(kind: str, about: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ", ".join(
        [kind, *(f"{sign}\N{NO-BREAK SPACE}{about[name]:g}" for name, sign in signs.items() if name in about)]
    )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value in ((), {}, ""):
        return "–"
    if isinstance(value, BaseModel):
        return "below"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else "below" if isinstance(value, dict) else f"{value}"


def _commands() -> Iterator[tuple[str, str]]:
    for name in main.app:
        if not name.startswith("-") and name not in ("run", "sweep"):  # which are told above
            yield f"`distilflow {name}`", (main.app[name].help or "").splitlines()[0]


def _arguments(doc: str) -> dict[str, str]:
    """The `Args:` of a docstring: name → text."""
    lines = re.split(r"\n    (?=\w+: )", doc.partition("Args:")[2])
    pairs = (re.sub(r"\s+", " ", line).strip().partition(": ") for line in lines if line.strip())
    return {name: text for name, _, text in pairs}


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    """Text that Markdown leaves alone, but for what stands in backticks."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if n % 2 else re.sub(r"([<*])", r"\\\1", part) for n, part in enumerate(parts))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
