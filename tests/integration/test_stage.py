"""A stage as a value: found, made once, and the one of the documentation as it stands there."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from infra.stage import Made, OneArtifact, Unseen, View, make
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.rows import KEPT, read_rows

DOCUMENT = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_the_stage_of_the_documentation_is_a_stage(rows: ArtifactRef) -> None:
    found = re.search(r"```python\n(class CountWords.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {
        **{each.__name__: each for each in (ArtifactRef, Made, OneArtifact, View, Workspace)},
        "ClassVar": ClassVar,
        "KEPT": KEPT,
        "read_rows": read_rows,
        "__name__": __name__,
    }
    exec(compile(found[1], str(DOCUMENT), "exec", dont_inherit=True), names)
    stage = names["CountWords"](rows=rows)
    assert stage.find() == {}
    first = make(stage, Unseen())
    assert first.new == ("words",)
    assert first.shown.counts["words"] == sum(len(row.response.split()) for row in read_rows(rows, KEPT))
    again = make(type(stage).model_validate(stage.model_dump(mode="json")), Unseen())
    assert again == Made(refs=first.refs)
    assert again.cached
    assert stage.is_finished()
    assert "words" in stage.show(again, Unseen())


class Slow(OneArtifact):
    """Made by one of any number, while the others wait; counts how often it was."""

    kind: ClassVar = "slow"
    makes: ClassVar = ("slow",)
    doing: ClassVar = "taking its time"
    made: ClassVar[list[str]] = []

    name: str

    def workspace(self) -> Workspace:
        return Workspace("slow", 1, {"name": self.name}, {})

    def slots(self, missing: Mapping[str, Workspace]) -> Mapping[str, int]:
        return {"gpu": len(missing)}

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        self.made.append(self.name)
        work.put("x", b"x")
        threading.Event().wait(1.0)
        return work.publish(("x",), {}, {})

    def show(self, made: Made, view: View) -> str:
        return ""


def test_of_several_runs_one_makes_it_under_its_slots(bucket: str) -> None:
    held: list[Mapping[str, int]] = []
    came: list[Made] = []

    def run() -> None:
        class Hold:
            def __enter__(self) -> None: ...

            def __exit__(self, *_: object) -> None: ...

        def hold(slots: Mapping[str, int], note: object) -> Hold:
            held.append(slots)
            return Hold()

        came.append(make(Slow(name="a"), Unseen(), hold))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Slow.made == ["a"]
    assert held == [{"gpu": 1}]
    assert sorted(made.new for made in came) == [(), (), ("slow",)]
    assert len({made.shown.sha256 for made in came}) == 1
    assert sum(made.seconds >= 1.0 for made in came) == 1, "the time is the maker's"
