"""The card of a published student: what a stranger on the hub has to know, and nothing that markup can hide."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import yaml

from infra.store.artifacts import Record
from tasks.models import LICENCES
from tasks.report.comparison import verdict
from tasks.report.model_card import hub_name, model_card
from tasks.train.settings import Distillation, Training
from tests.support.report_sample import sample_report

QWEN = "hub:Qwen/Qwen2.5-{}-Instruct@7ae557604adf67be50417f59c2c2f167def9a775"
COUNTS = {"steps": 600, "rows": 1500, "supervised_tokens": 61_244}


def _record(kind: str, model: str, training: Training) -> Record:
    spec = {"model": model, "training": training.model_dump(), "seed": 17}
    return Record(kind=kind, fingerprint="4be10c9d", spec=spec, counts=COUNTS, facts={"parameters": 494_032_768})


def _card(base: str, scorer: str, kind: str = "kd", files: Collection[str] = (), **changes: Any) -> str:
    records = {
        "sft": _record("sft", base, Training()),
        "sft_control": _record("sft_control", "artifact:1", Training()),
        "kd": _record("kd", "artifact:1", Distillation()),
        "logits": Record(kind="logits", fingerprint="1", spec={"teacher": scorer, "k": 10}),
    }
    data = sample_report(demo=False, **({"student": "0.5B", "teacher": "72B"} | changes))
    return model_card(data, kind, records, set(files), "s3://b/report/1/report.html", "my-company/small-data")


def _front(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    told: dict[str, Any] = yaml.safe_load(front)
    return told


def test_a_card_names_student_teacher_base_licence_and_how_it_did() -> None:
    card = _card(QWEN.format("0.5B"), QWEN.format("72B"))
    front = _front(card)
    assert front["base_model"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert front["license"] == "apache-2.0"
    assert front["tags"] == ["distillation", "kd"]
    assert "\n# 0.5B distilled from 72B\n" in card
    assert verdict(sample_report()).split(",")[0] in card
    assert "| SFT control |" in card
    assert "| SFT+KD |" in card
    for fact in ("1,500", "61,244", "494,032,768", "top 10 log-probabilities", "my-company/small-data"):
        assert fact in card
    assert "s3://b/report/1/report.html" in card
    assert "Qwen/Qwen2.5-72B-Instruct, has a licence of its own" in card


def test_a_control_is_not_called_distilled() -> None:
    card = _card(QWEN.format("0.5B"), QWEN.format("14B"), "sft_control")
    assert "(SFT control)" in card
    assert "the control of a distillation" in card
    assert "| Distillation |" not in card
    assert "licence of its own" not in card


def test_a_3b_student_has_the_licence_of_its_base() -> None:
    front = _front(_card(QWEN.format("3B"), QWEN.format("14B"), student="3B"))
    assert (front["license"], front["license_name"]) == ("other", "qwen-research")
    assert front["license_link"] == "https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/LICENSE"


def test_of_a_folder_the_licence_beside_the_weights_counts_and_where_there_is_none_that_is_said() -> None:
    folder = "folder:1f2e3d"
    with_one = _card(folder, folder, files={"LICENSE.txt", "config.json"})
    assert (_front(with_one)["license"], _front(with_one)["license_link"]) == ("other", "LICENSE.txt")
    without = _card(folder, folder)
    assert "license" not in _front(without)
    assert "base_model" not in _front(without)
    assert "look there before you pass the student on" in without


@pytest.mark.parametrize("name", ["a|b `c` [d](http://e) <f>", "x\n# y", 'z"\n---\nq: 1'])
def test_a_folders_name_is_text_in_a_card(name: str) -> None:
    card = _card("folder:1", "folder:2", student=name, teacher=name)
    assert _front(card).keys() <= {"library_name", "pipeline_tag", "tags", "license", "license_link"}
    assert name not in card
    assert sum(line.startswith("# ") for line in card.splitlines()) == 1
    assert "<f>" not in card


def test_every_preset_has_a_licence() -> None:
    assert len(LICENCES) == 7
    assert {name for name, told in LICENCES.items() if told["license"] == "other"} == {
        "Qwen/Qwen2.5-3B-Instruct",
        "Qwen/Qwen2.5-72B-Instruct",
    }


@pytest.mark.parametrize(
    ("identity", "name"),
    [("hub:a/b@main", "a/b"), ("hub:a/b", "a/b"), ("folder:12", None), ("artifact:1", None)],
)
def test_the_hubs_name_of_an_identity(identity: str, name: str | None) -> None:
    assert hub_name(identity) == name
