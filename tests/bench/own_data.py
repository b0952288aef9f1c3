"""What becomes of a company's rows that have no task categories: named, reasoned about, balanced.

    python -m tests.bench own_data [--rows 1000] [--seeds FILE]

Rows in Alpaca's format without categories, made of FILE's (any format; else of a few kinds of questions) by adding
whom they are for, go through the pipeline's own stages with a scripted endpoint, which is no language model: it names
categories by the first word. Once with names and once without. `named` is the share of seeds with a category;
`reasoned` the share of kept rows that Rewriting was asked to reason about; `evenness` is the entropy of the rows over
the categories, over that of an even distribution.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.rows import KEPT, read_rows
from tests.support.endpoint import endpoint, tell
from tests.support.stages import made

_MODEL = "openai/test"
_KINDS = (
    "Explain how {} works",
    "Translate '{}' into French",
    "Calculate what {} costs at 7 % more",
    "Write a poem about {}",
    "Summarize what is known of {}",
    "List ideas for {}",
)
_THINGS = ("a bakery", "the harbour", "a bicycle", "winter", "an orchestra", "the night train", "a lighthouse", "chess")


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench own_data")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seeds", type=Path)
    options = parser.parse_args(arguments)
    from infra.services.embedded import embedded_storage
    from infra.store import storage

    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"DISTILFLOW_HOME": home, "OPENAI_API_KEY": "key"}
        path = Path(home) / "seeds.json"
        path.write_text(json.dumps(_rows(options.rows, options.seeds)))
        with embedded_storage(), endpoint() as url:
            storage.ensure_bucket()
            return {"named": _figures(path, url, name=True), "unnamed": _figures(path, url, name=False)}


def _rows(count: int, source: Path | None) -> list[dict[str, str]]:
    """In the proportions of real data: a few kinds are most of it."""
    dice = random.Random(0)
    if source is not None:
        from tasks.seeds.formats import parse

        found = parse(str(source), source.read_bytes(), response_required=False)
        texts = [(row.instruction, row.input, row.response) for row in found]
    else:
        kinds = dice.choices(_KINDS, weights=[32, 16, 8, 4, 2, 1], k=50)
        texts = [(kind.format(dice.choice(_THINGS)), "", "It is so.") for kind in kinds]
    rows = []
    for number in range(count):
        instruction, given, response = texts[number % len(texts)]
        name = f"customer {number * 7919 % 100_003}"
        rows.append({"instruction": f"{instruction} (for {name})", "input": given, "output": response})
    return rows


def _figures(path: Path, url: str, *, name: bool) -> dict[str, Any]:
    from tasks.augment.agents import wants_chain_of_thought
    from tasks.augment.naming import NameCategories
    from tasks.augment.settings import Augmentation
    from tasks.augment.stage import Augment
    from tasks.seeds.settings import Reading
    from tasks.seeds.stage import LoadSeeds, Sources
    from tasks.text.categories import UNNAMED

    options = Augmentation(
        api_base=url, expansions_per_seed=1, min_score=0, near_duplicate=1, max_rows=600, name_categories=name
    )
    reading = Reading(near_heldout=None)
    asked = tell(url, "stats")["by_agent"].get("naming", 0)
    seeds = made(
        LoadSeeds(sources=Sources(str(path), None, None), heldout_share=0.05, response_required=True, reading=reading)
    )
    naming = NameCategories(seeds=seeds, agent_model=_MODEL, options=options)
    data = made(naming) if naming.is_needed else seeds
    rows = made(Augment(seeds=data, agent_model=_MODEL, options=options))
    by_seed = _counted(data)
    kept = Counter(row.task_category for row in read_rows(rows, KEPT))
    return {
        "requests_for_names": tell(url, "stats")["by_agent"].get("naming", 0) - asked,
        "named": round(1 - by_seed[UNNAMED] / by_seed.total(), 3),
        "categories": len(by_seed),
        "reasoned": round(sum(n for one, n in kept.items() if wants_chain_of_thought(one)) / kept.total(), 3),
        "evenness_of_seeds": _evenness(by_seed),
        "evenness_of_rows": _evenness(kept),
        "rows": kept.total(),
    }


def _counted(data: Any) -> Counter[str]:
    from tasks.augment.card import categories

    return Counter(categories(data))


def _evenness(counts: Mapping[str, int]) -> float | None:
    total = sum(counts.values())
    if len(counts) < 2:
        return None
    return round(-sum(n / total * math.log(n / total) for n in counts.values()) / math.log(len(counts)), 3)
