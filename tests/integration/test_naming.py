"""A company's rows have no task categories: an agent names them through LiteLLM, once, and within the budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.stage import Made
from infra.store.artifacts import ArtifactRef, facts_of
from tasks.augment.naming import NameCategories
from tasks.augment.settings import Augmentation
from tasks.augment.stage import Augment
from tasks.rows import HELDOUT, KEPT, TRAIN, read_rows
from tasks.seeds.stage import Sources
from tasks.text.categories import TASKS, UNNAMED
from tests.support.endpoint import endpoint, tell
from tests.support.stages import load, made
from tests.support.views import Seen

MODEL = "openai/test"


@pytest.fixture
def seeds(bucket: str, tmp_path: Path) -> ArtifactRef:
    rows = [{"instruction": f"Tell me about matter {n} of the {n * 7919}", "output": "It is so."} for n in range(95)]
    rows += [{**rows[0], "instruction": f"Mine is {n} of {n * 7907}", "category": "mine"} for n in range(5)]
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load(Sources(str(tmp_path / "s.jsonl"), None, None), heldout_share=0.1, response_required=True)


def test_every_row_gets_a_category_and_nobodys_own_is_changed(
    seeds: ArtifactRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with endpoint() as url:
        options = Augmentation(api_base=url, expansions_per_seed=1, min_score=0)
        stage = NameCategories(seeds=seeds, agent_model=MODEL, options=options)
        assert seeds.counts["unnamed"] == 95
        assert stage.is_needed
        named = made(stage)
        view = Seen()
        assert "rows named, in" in stage.show(Made(refs={"categories": named}), view)
        assert view.warnings == [], "every row has a category"
        asked = tell(url, "stats")["requests"]
        assert asked <= 12, "several rows a request"
        for part in (TRAIN, HELDOUT):
            before, after = (list(read_rows(ref, part)) for ref in (seeds, named))
            assert [row.id for row in before] == [row.id for row in after]
            for old, new in zip(before, after, strict=True):
                wanted = {"mine"} if old.task_category == "mine" else {*TASKS, UNNAMED}
                assert new.task_category in wanted
        counts = named.counts
        assert counts["named"] + counts["unnamed"] == 95
        assert sum(facts_of(named)["named"].values()) == counts["named"] > 80
        assert facts_of(named)["usage"]["naming"]["requests"] == asked
        augmented = made(Augment(seeds=named, agent_model=MODEL, options=options))
        assert tell(url, "stats")["by_agent"]["naming"] == asked, "named once"
    kept = list(read_rows(augmented, KEPT))
    assert {row.task_category for row in kept} - {"mine", UNNAMED} <= set(TASKS)
    assert sum(facts_of(augmented)["seeds_by_category"].values()) == seeds.counts["seeds"]
    assert not NameCategories(seeds=named, agent_model=MODEL, options=Augmentation(name_categories=False)).is_needed


def test_rows_that_no_category_fits_are_warned_of(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    rows = [{"instruction": f"w{n} is asked for", "output": "It is so."} for n in range(40)]
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    seeds = load(Sources(str(tmp_path / "s.jsonl"), None, None), heldout_share=0.1, response_required=True)
    with endpoint() as url:
        options = Augmentation(api_base=url, categories=("mine",))
        stage = NameCategories(seeds=seeds, agent_model=MODEL, options=options)
        named = made(stage)
    unnamed = sum(row.task_category == UNNAMED for part in (TRAIN, HELDOUT) for row in read_rows(named, part))
    assert 0 < unnamed == named.counts["unnamed"] < 40
    view = Seen()
    stage.show(Made(refs={"categories": named}), view)
    assert view.warnings == [f"{unnamed} rows have no task category still: they count as {UNNAMED!r}"]


def test_with_batches_the_files_fill_one(seeds: ArtifactRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with endpoint(batches="plain") as url:
        options = Augmentation(api_base=url, batch=True, batch_wait_s=0.5, batch_poll_s=0.2)
        named = made(NameCategories(seeds=seeds, agent_model=MODEL, options=options))
        batches = tell(url, "stats")["batches"]
    assert named.counts["named"] + named.counts["unnamed"] == 95
    assert len(batches) == 1, "training and held-out rows lie in two files, and wait together"


def test_naming_and_the_agents_share_one_budget(seeds: ArtifactRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with endpoint() as url:
        options = Augmentation(
            api_base=url,
            expansions_per_seed=0,
            min_score=0,
            max_output_tokens=300,
            budget_usd=0.5,
            usd_per_million_tokens=(10.0, 10.0),
        )
        named = made(NameCategories(seeds=seeds, agent_model=MODEL, options=options))
        spent = facts_of(named)["usage"]["naming"]["cost_usd"]
        assert 0 < spent < 0.5
        rows = made(Augment(seeds=named, agent_model=MODEL, options=options))
    taken = sum(used["cost_usd"] for used in facts_of(rows)["usage"].values())
    assert 0.5 * 0.8 < spent + taken <= 0.5
    assert facts_of(rows)["failed"], "what was not reached"
