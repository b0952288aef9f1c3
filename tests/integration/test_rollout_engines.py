"""Several engines and several workers answer one rollout: every piece once, as one alone would, whoever is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.processes.child import Reporter
from infra.processes.guardian import is_alive
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.models import resolve
from tasks.rollout import program
from tasks.rollout.settings import Rounds
from tasks.rollout.stage import Rollout
from tasks.rows import KEPT, REJECTED, read_rows
from tasks.seeds.stage import Sources
from tasks.tokens.written import read_written
from tests.support.processes import named, of_home
from tests.support.stages import load

PIECE, PROMPTS = 6, 60
HOW = Rounds(rounds=1, engine="transformers", max_new_tokens=12, batch_rows=PIECE, prompts=PROMPTS)
WORKER = f"""
import json, pathlib, sys
from infra.processes.child import Reporter
from tasks.rollout import answering, program

folder, real = pathlib.Path(sys.argv[1]), answering.answer
def answer(task, name, *others):
    real(task, name, *others)
    with (folder / "answered").open("a") as file:
        file.write(name + "\\n")

program.PROMPTS_A_PIECE, answering.answer = {PIECE}, answer
print(json.dumps(program.main(json.loads(sys.argv[2]), Reporter(folder))))
"""


class Asked:
    """A rollout with workspaces of its own."""

    def __init__(self, rows: ArtifactRef, seeds: ArtifactRef, tag: str, engines: int = 1):
        how = HOW.model_copy(update={"engines": engines})
        model = resolve("demo", "teacher")
        stage = Rollout(model=model, rows=rows, seeds=seeds, rounds=how, round=1, max_length=384, seed=5)
        made = stage.workspace()
        self.work = Workspace(made.kind, made.version, {**made.spec, "for": tag}, made.inputs)
        self.spec = json.loads(json.dumps(stage.model_dump(mode="json") | {"workspace": self.work.description()}))

    def answers(self, result: dict[str, Any]) -> tuple[Any, Any]:
        """What is published of the answers: those kept, in tokens, and those left out."""
        made = self.work.publish((KEPT, REJECTED), result["counts"], result["facts"])
        assert made.counts["prompts"] == PROMPTS
        kept = [(one.tokens.row_id, list(one.tokens.ids)) for one in read_written(made)]
        return kept, [row.id for row in read_rows(made, REJECTED)]


class Killer(Reporter):
    """Kills one of the engines when it first hears of progress."""

    killed = False

    def __init__(self, folder: Path):
        folder.mkdir()
        super().__init__(folder)
        self.events: list[dict[str, Any]] = []

    def event(self, name: str, **fields: Any) -> None:
        self.events.append({"event": name, **fields})
        if name == "progress" and not self.killed:
            engines()[0].kill()
            self.killed = True


def engines() -> list[Any]:
    found = named(of_home(os.environ["DISTILFLOW_HOME"]), "tasks.rollout.answering")
    return [one for one in found if is_alive(one) and "infra.processes.guardian" not in " ".join(one.cmdline())]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def seeds(services: object) -> ArtifactRef:
    return load(Sources.of("demo", None, None), heldout_share=0.1, response_required=True)


@pytest.fixture(scope="module")
def alone(rows: ArtifactRef, seeds: ArtifactRef, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """What one engine answers."""
    asked = Asked(rows, seeds, "alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "PROMPTS_A_PIECE", PIECE)
        return asked.answers(program.main(asked.spec, Reporter(tmp_path_factory.mktemp("alone"))))


def test_a_killed_engine_costs_its_piece_and_the_other_answers_it(
    rows: ArtifactRef, seeds: ArtifactRef, alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "PROMPTS_A_PIECE", PIECE)
    asked, killer = Asked(rows, seeds, "two", engines=2), Killer(tmp_path / "two")
    result = program.main(asked.spec, killer)
    assert result["facts"]["engines"] == 2
    (warning,) = (event["text"] for event in killer.events if event["event"] == "warning")
    assert "of 2 is lost, and the others do its part: rollout-engine-" in warning
    progress = [event for event in killer.events if event["event"] == "progress"]
    assert [progress[-1][name] for name in ("done", "total", "engines")] == [PROMPTS, PROMPTS, 1]
    assert engines() == []
    assert asked.answers(result) == alone


def test_two_workers_answer_every_piece_once(rows: ArtifactRef, seeds: ArtifactRef, alone: Any, tmp_path: Path) -> None:
    asked = Asked(rows, seeds, "workers")
    folders = [tmp_path / "one", tmp_path / "other"]
    workers = []
    for folder in folders:
        folder.mkdir()
        command = [sys.executable, "-c", WORKER, str(folder), json.dumps(asked.spec)]
        workers.append(subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True))
    results = [json.loads(worker.communicate(timeout=200)[0].splitlines()[-1]) for worker in workers]
    assert results[0]["counts"] == results[1]["counts"]
    answered = [(folder / "answered").read_text().split() for folder in folders]
    assert all(answered)  # each had a part
    assert sorted(answered[0] + answered[1]) == [f"done/{number:05}" for number in range(PROMPTS // PIECE)]
    assert asked.answers(results[0]) == alone
