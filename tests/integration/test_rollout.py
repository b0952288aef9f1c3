"""The demo's student answers, over a kill: the very ids that it drew, marked, and nothing asked twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.processes.child import Reporter
from infra.store.artifacts import ArtifactRef, Workspace, facts_of
from tasks.engines.generation import Ends, Prompt, Sampling, TransformersGenerator
from tasks.evaluate.heldout.scoring import load_model
from tasks.models import load_tokenizer, resolve
from tasks.rollout import program
from tasks.rollout.choice import CUT_OFF
from tasks.rollout.settings import Rounds
from tasks.rollout.stage import Rollout
from tasks.rows import KEPT, REJECTED, Row, read_rows, to_parquet
from tasks.seeds.formats import parse
from tasks.seeds.stage import DATABASES
from tasks.shipped import DEMO
from tasks.tokens.rows import TokenisedRow, tokenise
from tasks.tokens.written import read_written
from tests.support.memory_store import MemoryStore

MODEL = resolve("demo", "teacher")  # who knows the domain, so that some answers are right
HOW = Rounds(rounds=1, n=2, engine="transformers", max_new_tokens=18, batch_rows=4, prompts=10)


@pytest.fixture(autouse=True)
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    return MemoryStore().replace(monkeypatch)


def _rows() -> list[Row]:
    return parse("heldout.jsonl", (DEMO / "heldout.jsonl").read_bytes(), response_required=True)[:16]


def _stage() -> Rollout:
    rows, seeds = Workspace("augment", 1, {}, {}), Workspace("seeds", 1, {}, {})
    rows.put(f"{KEPT}00000.parquet", to_parquet(_rows()))
    for path in (DEMO / "databases").glob("*.sql"):
        seeds.put(f"{DATABASES}{path.stem}.sql", path.read_bytes())
    return Rollout(
        model=MODEL,
        rows=rows.publish((KEPT,), {"rows": 16}, {}),
        seeds=seeds.publish((DATABASES,), {}, {}),
        rounds=HOW,
        round=2,
        max_length=384,
        seed=5,
    )


def _made(stage: Rollout, folder: Path) -> ArtifactRef:
    work = stage.workspace()
    spec = json.loads(json.dumps(stage.model_dump(mode="json") | {"workspace": work.description()}))
    folder.mkdir(exist_ok=True)
    result = program.main(spec, Reporter(folder))
    return work.publish((KEPT, REJECTED), result["counts"], result["facts"])


class _Killed(BaseException):
    pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The prompts of every call of the engine; the second one ends the process."""
    calls: list[list[str]] = []
    real = TransformersGenerator.ids

    def ids(self: Any, prompts: Sequence[Prompt], sampling: Sampling | None) -> Iterator[list[Sequence[int]]]:
        calls.append([prompt.key for prompt in prompts])
        if len(calls) == 2:
            raise _Killed
        return real(self, prompts, sampling)

    monkeypatch.setattr(program, "PROMPTS_A_PIECE", 4)
    monkeypatch.setattr(TransformersGenerator, "ids", ids)
    return calls


def test_answers_are_kept_over_a_kill_in_the_ids_that_were_drawn_and_what_was_cut_off_is_left_out(
    tmp_path: Path, asked: list[list[str]]
) -> None:
    stage = _stage()
    with pytest.raises(_Killed):
        _made(stage, tmp_path / "killed")
    made = _made(stage, tmp_path / "again")
    assert asked[1] in asked[2:]  # the killed piece again, the first one not
    assert len(asked) == 4
    assert len({key for call in asked for key in call}) == 10

    kept, dropped = list(read_written(made)), list(read_rows(made, REJECTED))
    assert len(kept) + len(dropped) == 2 * 10
    assert made.counts["rows"] == len(kept) > 0
    assert made.counts["rejected"] == len(dropped) == sum(facts_of(made)["left_out"].values())
    assert facts_of(made)["left_out"][CUT_OFF] > 0
    assert len({one.tokens.row_id for one in kept}) == len(kept)
    tokenizer = load_tokenizer(MODEL)
    ends = Ends.of(MODEL, tokenizer)
    prompts = {row.instruction + row.input: _prompt(row, tokenizer) for row in _rows()}
    for one in kept:
        answer = one.tokens.ids[one.tokens.response_start :]
        prompt = prompts[one.row.instruction + one.row.input]
        assert list(one.tokens.ids[: one.tokens.response_start]) == list(prompt.ids)
        assert answer[-1] in ends.stop_ids
        assert one.row.response == tokenizer.decode(answer[:-1], skip_special_tokens=True)
        assert one.row.lineage[-1] == "rollout 2"
    assert {one.row.verdicts.get("execution") for one in kept} <= {"right", "wrong"}
    right = sum(one.row.verdicts["execution"] == "right" for one in kept)
    assert (made.counts["right"], made.counts["wrong"]) == (right, len(kept) - right)
    assert right > 0

    generator = TransformersGenerator(load_model(MODEL), ends, HOW.max_new_tokens, HOW.batch_rows)
    by_key = {prompt.key: prompt for prompt in prompts.values()}
    piece = [by_key[key] for key in asked[3]]
    drawn = [ids for answers in generator.ids(piece, Sampling(2, 1.0, 1.0, 7)) for ids in map(ends.written, answers)]
    whole = [ids for ids, truncated in drawn if not truncated]
    of_piece = {tuple(prompt.ids) for prompt in piece}
    ours = [one.tokens for one in kept if tuple(one.tokens.ids[: one.tokens.response_start]) in of_piece]
    assert [list(one.ids[one.response_start :]) for one in ours] == whole


def _prompt(row: Row, tokenizer: Any) -> Prompt:
    tokens = tokenise(row, tokenizer, 384)
    assert isinstance(tokens, TokenisedRow)
    return Prompt(row.id, tokens.ids[: tokens.response_start])
