"""The card in a student's folder: names of folders are text in it, and its front matter is YAML."""

from __future__ import annotations

import pytest
import yaml

from tasks.train.model.export import render_card
from tasks.train.settings import Distillation, Training

FACTS = {
    "title": "A student",
    "parameters": 1,
    "rows": 2,
    "supervised_tokens": 3,
    "steps": 4,
    "curve": [(1, 2.5), (4, 1.5)],
    "seed": 0,
    "data": "s3://b/augment/1/",
    "fingerprint": "f",
}


@pytest.mark.parametrize("name", ["a|b `c` <script>", "x\n---\nlicense: mit\n# y"])
def test_the_name_of_a_base_is_text(name: str) -> None:
    card = render_card(
        {**FACTS, "base": name, "base_hub": name, "objective": "kd", "training": Distillation(), "k": 10}
    )
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == name
    assert "license" not in yaml.safe_load(front)
    assert name not in body
    assert "<script>" not in body
    assert [line for line in body.splitlines() if line.startswith("# ")] == ["# A student"]


def test_a_card_without_a_teacher_names_none() -> None:
    card = render_card(
        {**FACTS, "base": "demo", "base_hub": None, "objective": "sft", "training": Training(), "k": None}
    )
    assert "base_model" not in card
    assert "| Teacher |" not in card
