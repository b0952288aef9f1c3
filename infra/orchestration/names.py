"""What runs are called: what they do, then what whoever started them called them, or Prefect made up.

`0.5B-from-14B-k10 · tuesday` sends `kd · 0.5B-from-14B-k10 · tuesday` to the gpu pool. A stage is found by its tag.
"""

from __future__ import annotations

from collections.abc import Collection

import prefect.runtime

_BETWEEN = " · "
_STAGE = "stage:"


def run_name(what: str) -> str:
    """Of the current flow run. It keeps a name that begins so: another run of ours gave it, or its own first try."""
    given = _name()
    return given if given.startswith(what) else what + _BETWEEN + given


def child_name(what: str) -> str:
    """Of one of the runs that the current one starts, whose own name it bears too."""
    return _BETWEEN.join([what, *_name().split(_BETWEEN)[1:]])


def stage_name(stage: str) -> str:
    """Of the run elsewhere that does a stage of the current one."""
    return _BETWEEN.join(filter(None, [stage, _name()]))


def stage_tag(stage: str) -> str:
    return f"{_STAGE}{stage}"


def stage_of(tags: Collection[str]) -> str | None:
    """The stage that one of them names."""
    return next((tag.removeprefix(_STAGE) for tag in tags if tag.startswith(_STAGE)), None)


def _name() -> str:
    return str(prefect.runtime.flow_run.name or "")
