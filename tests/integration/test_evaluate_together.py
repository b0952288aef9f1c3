"""Variants are scored side by side: the numbers are each one's own, and the teacher is asked once for all of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from infra.processes import child
from infra.store import storage
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.evaluate.heldout import answering, predictions, program, teachers, together
from tasks.evaluate.heldout.scoring import load_model, logits_of
from tasks.evaluate.settings import Evaluation
from tasks.logits.settings import Scoring
from tasks.logits.stage import ScoreHeldout
from tasks.models import ModelSource, resolve
from tasks.seeds.stage import Sources
from tests.support.other_tokenizer import shuffled_ids
from tests.support.processes import named, of_home
from tests.support.stages import evaluation_workspace, load, made

ROWS, AT_ONCE = 12, 4
SETTINGS = Evaluation(
    max_rows=ROWS, max_new_tokens=2, max_length=384, batch_rows=AT_ONCE, engine="transformers"
).following(10)
BATCHES = -(-ROWS // AT_ONCE)


@dataclass
class Passes:
    """Counts the teacher's passes; `die_at` is the one that fails."""

    count: int = 0
    die_at: int | None = None

    def __call__(self, model: Any, rows: Sequence[Any]) -> Tensor:
        self.count += 1
        if self.count == self.die_at:
            raise KeyboardInterrupt
        return logits_of(model, rows)


@dataclass
class Evaluated:
    """The same variants again and again, each time in workspaces of their own."""

    models: dict[str, ModelSource]
    seeds: ArtifactRef
    folder: Path
    settings: Evaluation = SETTINGS
    scores: ArtifactRef | None = None
    times: int = 0
    works: dict[str, Workspace] = field(default_factory=dict)

    def anew(self) -> Evaluated:
        self.times += 1
        teacher = resolve("demo", "teacher")
        for name, model in self.models.items():
            work = evaluation_workspace(model, teacher, self.seeds, SETTINGS)
            self.works[name] = Workspace(work.kind, work.version, {**work.spec, "time": self.times}, work.inputs)
        return self

    def run(self, *names: str) -> dict[str, bytes]:
        """The predictions of these variants (default: all that lack them), as they are stored."""
        asked = names or [name for name, work in self.works.items() if not work.has(program.METRICS)]
        spec = {
            "teacher": resolve("demo", "teacher").model_dump(),
            "heldout": self.seeds.model_dump(),
            "evaluation": self.settings.model_dump(),
            "teacher_scores": self.scores and self.scores.model_dump(),
            "variants": [
                {"name": name, "model": self.models[name].model_dump(), "workspace": self.works[name].description()}
                for name in asked
            ],
        }
        for agenda in self.folder.glob("agenda-*"):
            shutil.rmtree(agenda)
        program.main(spec, child.Reporter(self.folder))
        return {name: self.works[name].read(program.PREDICTIONS) for name in asked}


@pytest.fixture
def evaluated(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    """The teacher, a student, one that takes only short rows, and one with another tokenizer."""
    monkeypatch.setattr(program, "open_databases", lambda seeds: {})  # no answer is run
    seeds = load(Sources.of("demo", None, None), heldout_share=0.1, response_required=False)
    models = {
        "base": resolve("demo", "student"),
        "short": _short(tmp_path / "short"),
        "shuffled": shuffled_ids(resolve("demo", "teacher"), tmp_path / "shuffled"),
        "teacher": resolve("demo", "teacher"),
    }
    return Evaluated(models, seeds, tmp_path)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    counted = Passes()
    monkeypatch.setattr(teachers, "logits_of", counted)
    return counted


def _short(folder: Path) -> ModelSource:
    shutil.copytree(str(resolve("demo", "student").path), folder)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "max_position_embeddings": 70}))
    return ModelSource(name="short", path=str(folder))


def test_variants_beside_each_other_have_the_numbers_that_each_has_alone(
    evaluated: Evaluated, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = evaluated.anew().run()
    rows = {name: evaluated.works[name].get_json(program.METRICS)["n"] for name in together}
    assert 0 < rows.pop("short") < ROWS
    assert set(rows.values()) == {ROWS}
    assert passes.count == BATCHES
    evaluated.anew()
    alone = {name: evaluated.run(name)[name] for name in evaluated.models}
    assert alone == together
    passes.count = 0
    monkeypatch.setattr(program, "_room", lambda *_: 0)  # as where memory holds one student beside the teacher
    assert evaluated.anew().run() == together
    assert BATCHES < passes.count <= len(evaluated.models) * BATCHES


def test_a_killed_scoring_continues_with_the_batch_in_flight(
    evaluated: Evaluated, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then is killed between the files of one variant and of the next, which need no model again."""
    whole = evaluated.anew().run()
    monkeypatch.setattr(together, "KEEP_EVERY_S", 0.0)
    passes.count, passes.die_at = 0, 2
    with pytest.raises(KeyboardInterrupt):
        evaluated.anew().run()
    passes.count, passes.die_at = 0, None
    assert evaluated.run("teacher") == {"teacher": whole["teacher"]}
    assert passes.count == BATCHES - 1
    real, written = program.predictions.to_parquet, []

    def to_parquet(rows: Sequence[Any]) -> bytes:
        written.append(rows)
        if len(written) == 2:
            raise KeyboardInterrupt
        return real(rows)

    with monkeypatch.context() as dying:
        dying.setattr(program.predictions, "to_parquet", to_parquet)
        with pytest.raises(KeyboardInterrupt):
            evaluated.run()
    assert [name for name, work in evaluated.works.items() if work.has(program.METRICS)] == ["base", "teacher"]
    monkeypatch.setattr(program, "load_model", lambda source: pytest.fail(f"{source.name} was loaded"))
    assert evaluated.run() == {name: whole[name] for name in ("short", "shuffled")}
    assert evaluated.works["base"].read(program.PREDICTIONS) == whole["base"]
    for work in evaluated.works.values():
        assert sorted(storage.keys(work.uri)) == sorted([program.METRICS, program.PREDICTIONS])


class Killer(child.Reporter):
    """Kills one of the engines when it first hears of progress."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.events: list[dict[str, Any]] = []

    def event(self, name: str, **fields: Any) -> None:
        if name == "progress" and not any(event["event"] == "progress" for event in self.events):
            engines = named(of_home(os.environ["DISTILFLOW_HOME"]), answering.ANSWERING)
            next(one for one in engines if "infra.processes.guardian" not in " ".join(one.cmdline())).kill()
        self.events.append({"event": name, **fields})


def test_two_engines_answer_what_one_does_and_a_killed_one_costs_its_piece(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(answering, "_ROWS_A_PIECE", AT_ONCE)
    del evaluated.models["shuffled"], evaluated.models["short"]
    whole = evaluated.anew().run()
    killer = Killer(evaluated.folder)
    monkeypatch.setattr(child, "Reporter", lambda folder: killer)
    evaluated.settings = SETTINGS.model_copy(update={"engines": 2})
    assert evaluated.anew().run() == whole
    (warning,) = (event["text"] for event in killer.events if event["event"] == "warning")
    assert "of 2 is lost, and the others do its part: evaluate-engine-" in warning
    progress = [event for event in killer.events if event["event"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == 2 * 2 * ROWS
    assert 0 < max(event["done"] for event in progress if event.get("engines")) <= 2 * ROWS  # the answers
    for work in evaluated.works.values():
        assert sorted(storage.keys(work.uri)) == sorted([program.METRICS, program.PREDICTIONS])


def test_stored_scores_give_the_top_k_distances_without_the_teacher(
    evaluated: Evaluated, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the store's rounding, 1/128 of a probability; another tokenizer's variant in its own tokens."""
    whole = {name: predictions.from_parquet(data) for name, data in evaluated.anew().run().items()}
    scoring = Scoring(engine="transformers", max_length=SETTINGS.max_length)
    teacher = resolve("demo", "teacher")
    evaluated.scores = made(ScoreHeldout(rows=evaluated.seeds, teacher=teacher, k=10, scoring=scoring, max_rows=ROWS))
    assert evaluated.scores.counts["rows"] == ROWS
    evaluated.settings = SETTINGS.model_copy(update={"teacher": "topk"})
    passes.count = 0
    loaded: list[ModelSource] = []

    def load_noted(source: ModelSource, *dtype: Any) -> Any:
        loaded.append(source)
        return load_model(source, *dtype)

    for module in (program, answering):
        monkeypatch.setattr(module, "load_model", load_noted)
    found = {name: predictions.from_parquet(data) for name, data in evaluated.anew().run().items()}
    assert passes.count == 0
    assert loaded.count(teacher) == 1  # to answer
    assert evaluated.works["base"].get_json(program.METRICS)["compared_with_top"] == 10
    for name, table in found.items():
        before = whole[name].set_index("row_id").loc[table["row_id"]].reset_index()
        assert len(table) == len(before) > 0
        assert table["kl_tokens"].tolist() == before["kl_tokens"].tolist()
        rounding = (table["kl_tokens"] + before["topk_kl"]) / 64  # of p, in Σ p · log(p / q)
        for metric in ("topk_kl", "nll"):
            assert ((table[metric] - before[metric]).abs() < rounding).all(), (name, metric)
        assert table["kl_to_teacher"].tolist() == table["topk_kl"].tolist()
        if name == "shuffled":  # another tokenizer's tokens are no draft
            assert table["accepted"].isna().all()
            assert before["accepted"].isna().all()
        else:
            assert (table["accepted"] <= before["accepted"] + table["kl_tokens"] / 128).all()
            assert (table["accepted"] > 0.7 * before["accepted"] - table["kl_tokens"] / 64).all()
        assert (table["top1_agreed"] - before["top1_agreed"]).abs().sum() <= 1
        assert table["calibration_tokens"].map(sum).tolist() == table["response_tokens"].tolist()
    assert found["base"]["topk_kl"].sum() > 100 > found["shuffled"]["topk_kl"].sum()


def test_size_and_speed_of_each_are_measured_and_an_engines_start_is_none_of_its_speed(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    loading, answers = answering._generator, answering._answers

    def takes(seconds: float, do: Callable[..., Any]) -> Callable[..., Any]:
        def done(*given: Any) -> Any:
            nonlocal clock
            clock += seconds
            return do(*given)

        return done

    monkeypatch.setattr(answering, "time", SimpleNamespace(monotonic=lambda: clock))
    monkeypatch.setattr(answering, "_generator", takes(100.0, loading))
    monkeypatch.setattr(answering, "_answers", takes(2.0, answers))
    table = predictions.from_parquet(evaluated.anew().run("base")["base"])
    told = evaluated.works["base"].get_json(program.METRICS)
    assert ROWS <= answering._ROWS_A_PIECE  # all of them at once
    assert told["tokens_s"] == round(table["generated_tokens"].sum() / 2.0, 1) > 0
    assert told["seconds"] > 100.0
    weights = [load_file(path) for path in resolve("demo", "student").fetch().glob("*.safetensors")]
    parameters = sum(tensor.numel() for file in weights for tensor in file.values())
    assert told["parameters"] == pytest.approx(parameters, rel=0.002)  # by its config: norms and biases are left out
