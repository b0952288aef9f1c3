"""A stage as a value: what it is made from, where that would lie, what it needs, how it is made, what people see of it.

A stage is a frozen pydantic model: equal stages are equal, and it is JSON too. `infra.orchestration.run` runs any of
them, here or on a deployment; the plan asks the same objects what is there. Nothing here knows Prefect.
"""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from infra.devices import Gpus
from infra.needs import Needs
from infra.processes.supervise import Event
from infra.store.artifacts import ArtifactRef, Workspace
from infra.store.claims import made_once

R = TypeVar("R")
Hold = Callable[[Mapping[str, int], Callable[[str], None]], contextlib.AbstractContextManager[object]]


class View(Protocol):
    """What people see of a stage while it is made."""

    def tick(self, done: int, total: int, note: str = "") -> None: ...

    def follow(self, describe: Callable[[Event], str]) -> Callable[[Event], None]: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def table(self, key: str, rows: list[dict[str, Any]], description: str) -> None: ...

    def markdown(self, key: str, text: str, description: str) -> None: ...

    def page(self, key: str, uri: str, name: str) -> None: ...

    async def batch(self, name: str, do: Callable[[], Awaitable[None]]) -> None: ...


class Unseen:
    """A view that nobody looks at."""

    def tick(self, done: int, total: int, note: str = "") -> None: ...

    def follow(self, describe: Callable[[Event], str]) -> Callable[[Event], None]:
        return lambda event: None

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def table(self, key: str, rows: list[dict[str, Any]], description: str) -> None: ...

    def markdown(self, key: str, text: str, description: str) -> None: ...

    def page(self, key: str, uri: str, name: str) -> None: ...

    async def batch(self, name: str, do: Callable[[], Awaitable[None]]) -> None:
        await do()


class Made(BaseModel):
    """What a stage came to in one run: its artifacts by name, those that were made now, and the seconds it took."""

    refs: dict[str, ArtifactRef]
    new: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def cached(self) -> bool:
        """Whether all was found finished."""
        return not self.new

    @property
    def shown(self) -> ArtifactRef:
        """The artifact whose address stands for all: the distilled student's, where there is one a variant."""
        of_kd = (ref for name, ref in self.refs.items() if name.split("/")[0] == "kd")
        return next(of_kd, next(iter(self.refs.values())))


class Stage(BaseModel, Generic[R]):
    """A step of the pipeline. Its fields are its inputs and settings; what `run` gives for it is an R.

    `kind` is what it is called where it is asked for; `makes` the kinds of artifacts that come of it; `on_workers` says
    that it needs an engine, and so goes where a run's heavy stages go.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[str]
    makes: ClassVar[tuple[str, ...]]
    doing: ClassVar[str]
    on_workers: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """What people call it."""
        return self.kind

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to do for what it is given; a run without it has no artifact of it."""
        return True

    @property
    def is_shared(self) -> bool:
        """Whether several processes make it together, and claim its pieces; else one makes it and the others wait."""
        return False

    @abstractmethod
    def workspaces(self) -> dict[str, Workspace]:
        """Where each of its artifacts lies or is made, by name."""

    def slots(self, missing: Mapping[str, Workspace]) -> Mapping[str, int]:
        """What is held while it is made: slots by the name of a limit."""
        return {}

    def needs(self, offered: Gpus | None) -> Needs | None:
        """What a machine of its own must have to make it, out of one with the GPUs that are `offered` (None: unknown).

        None where that is not known. Raises ConfigurationError where what is offered is too small.
        """
        return None

    @abstractmethod
    def make(self, missing: Mapping[str, Workspace], view: View) -> dict[str, ArtifactRef]:
        """Make and publish what is missing."""

    @abstractmethod
    def show(self, made: Made, view: View) -> str:
        """Tables and warnings for `view`, and the one line that says what came of it."""

    @abstractmethod
    def result(self, refs: Mapping[str, ArtifactRef]) -> R:
        """What later stages are given."""

    def find(self) -> dict[str, ArtifactRef]:
        """Those of its artifacts that are finished."""
        return {name: ref for name, work in self.workspaces().items() if (ref := work.find())}

    def is_finished(self) -> bool:
        """Whether there is nothing to make."""
        return all(work.find() for work in self.workspaces().values())


class OneArtifact(Stage[ArtifactRef]):
    """A stage of which one artifact comes."""

    @abstractmethod
    def workspace(self) -> Workspace:
        """Where it lies or is made."""

    @abstractmethod
    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        """Make and publish it."""

    def workspaces(self) -> dict[str, Workspace]:
        return {self.title: self.workspace()}

    def make(self, missing: Mapping[str, Workspace], view: View) -> dict[str, ArtifactRef]:
        return {name: self.make_in(work, view) for name, work in missing.items()}

    def result(self, refs: Mapping[str, ArtifactRef]) -> ArtifactRef:
        return refs[self.title]


class SeveralArtifacts(Stage[dict[str, ArtifactRef]]):
    """A stage with an artifact for each variant, or each variant and benchmark ("kd/alpaca_eval")."""

    def result(self, refs: Mapping[str, ArtifactRef]) -> dict[str, ArtifactRef]:
        return dict(refs)


def kinds() -> dict[str, type[Stage[Any]]]:
    """Every stage that has been defined, by its kind."""
    found: dict[str, type[Stage[Any]]] = {}
    waiting: list[Any] = [Stage]
    while waiting:
        stage = waiting.pop()
        waiting += stage.__subclasses__()
        if "kind" in vars(stage):
            found[stage.kind] = stage
    return found


def make(stage: Stage[Any], view: View, hold: Hold = lambda slots, note: contextlib.nullcontext()) -> Made:
    """Find, else claim, hold and make: all that a stage comes to, whoever of several processes makes it.

    `hold(slots, note)` holds slots of limits for the length of its `with`. Raises what the stage raises.
    """
    new: list[str] = []
    seconds = 0.0

    def making(missing: dict[str, Workspace]) -> dict[str, ArtifactRef]:
        nonlocal seconds
        with hold(stage.slots(missing), view.note):
            began = time.monotonic()
            refs = stage.make(missing, view)
            seconds += time.monotonic() - began
        new.extend(refs)
        return refs

    works = stage.workspaces()
    if stage.is_shared:
        refs = {name: ref for name, work in works.items() if (ref := work.find())}
        if missing := {name: work for name, work in works.items() if name not in refs}:
            refs |= making(missing)
    else:
        refs = made_once(works, making, view.note)
    return Made(refs={name: refs[name] for name in works}, new=tuple(new), seconds=round(seconds, 2))


def skipped_note(skipped: Mapping[str, int]) -> str:
    """Rows that a stage could not use, in words: nothing is lost silently."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items()))
    return f"; skipped {reasons}" if reasons else ""
