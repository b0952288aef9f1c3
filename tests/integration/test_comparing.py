"""Rows that ask what is held out in other words or another language are found through LiteLLM, told, and paid once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.stage import Made
from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, facts_of
from tasks.augment.settings import Augmentation
from tasks.augment.stage import Augment
from tasks.rows import KEPT, REJECTED, Row, read_rows
from tasks.seeds.settings import Reading
from tasks.seeds.stage import LoadSeeds, Sources
from tasks.text.leaks import RETOLD
from tests.support.endpoint import endpoint, tell
from tests.support.leak_rows import heldout_rows, others_with_their_words, retold_rows, translated_rows
from tests.support.stages import made
from tests.support.views import Seen

MODEL = "openai/test"
PLANTED = {"retold": retold_rows(), "translated": translated_rows()}
OTHERS = list(others_with_their_words(200, seed=2))
ALONE: dict[str, Any] = {"expansions_per_seed": 0, "rewriting": False, "selection": False, "verification": False}


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with endpoint() as address:
        yield address


def _seeds(folder: Path) -> ArtifactRef:
    def put(name: str, rows: list[Row]) -> str:
        lines = [{"instruction": r.instruction, "output": r.response, "language": r.language} for r in rows]
        (folder / name).write_text("\n".join(map(json.dumps, lines)))
        return str(folder / name)

    sources = Sources(
        put("s.jsonl", [*OTHERS, *PLANTED["retold"], *PLANTED["translated"]]), put("h.jsonl", heldout_rows()), None
    )
    return made(LoadSeeds(sources=sources, heldout_share=0.1, response_required=True, reading=Reading()))


def test_what_is_retold_or_translated_is_left_out_and_told_by_kind(bucket: str, tmp_path: Path, url: str) -> None:
    seeds = _seeds(tmp_path)
    assert seeds.counts["seeds"] == 220, "by their words alone nobody finds them"
    stage = Augment(
        seeds=seeds,
        agent_model=MODEL,
        options=Augmentation(api_base=url, name_categories=False, compare_heldout=5, **ALONE),
    )
    ref = made(stage)
    stats = tell(url, "stats")
    assert set(stats["by_agent"]) == {"comparison"}
    pairs = ref.counts["compared"]
    assert stats["requests"] <= pairs / 10 + 5, "ten a request, and one that is not full for each language"
    assert pairs <= 10 * 5 * 2
    kept, rejected = ({row.instruction for row in read_rows(ref, part)} for part in (KEPT, REJECTED))
    found = {kind: sum(row.instruction in rejected for row in rows) for kind, rows in PLANTED.items()}
    assert found == {"retold": 10, "translated": 9}
    assert rejected <= {row.instruction for rows in PLANTED.values() for row in rows}
    assert len(kept) + len(rejected) == 220
    assert facts_of(ref)["rejected"] == {"comparison": {RETOLD: 19}}
    card = ArtifactReader(ref).read("card.md").decode()
    assert f"| rejected | comparison | {RETOLD} | 19 |" in card
    assert f"| Rows compared with a held-out row | {pairs} pairs |" in card
    view = Seen()
    stage.show(Made(refs={"augment": ref}), view)
    assert view.warnings == []

    storage.delete_all(stage.workspace().uri, list(storage.keys(stage.workspace().uri)))
    assert made(stage).sha256 == ref.sha256
    assert tell(url, "stats")["requests"] == stats["requests"], "found in the cache"


def test_the_budget_holds_and_what_it_does_not_reach_is_told(bucket: str, tmp_path: Path, url: str) -> None:
    options = Augmentation(
        api_base=url,
        compare_heldout=5,
        budget_usd=0.1,
        usd_per_million_tokens=(10.0, 10.0),
        max_output_tokens=300,
        **ALONE,
    )
    stage = Augment(seeds=_seeds(tmp_path), agent_model=MODEL, options=options)
    ref = made(stage)
    spent = facts_of(ref)["usage"]["comparison"]["cost_usd"]
    assert 0 < spent <= 0.1
    left = ref.counts["not_compared"]
    assert Counter(facts_of(ref)["not_compared"]) == {"budget reached": left}
    assert ref.counts["compared"] > 0 < left
    view = Seen()
    stage.show(Made(refs={"augment": ref}), view)
    assert [text.split(" were ")[0] for text in view.warnings] == [f"{left} rows"]
    assert "budget reached" in view.warnings[0]
