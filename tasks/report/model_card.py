"""The model card of a student that is published: what it is, what it was made from, and how it did. Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from infra.store.artifacts import Record
from tasks.models import LICENCES
from tasks.quantise.settings import format_of
from tasks.report import quantised
from tasks.report.comparison import comparison_rows, verdict
from tasks.report.data import ReportData
from tasks.report.draft import sentence
from tasks.text.markdown import markdown_text, table

_TRAINED = {
    "kd": "on the teacher's top-{k} log-probabilities, after supervised fine-tuning",
    "kd_continued": "on the teacher's top-{k} log-probabilities, for longer: the control of on-policy rounds",
    "kd_round": "on the teacher's top-{k} log-probabilities, of given rows and of the student's own answers",
    "sft_after_kd": "on the teacher's top-{k} log-probabilities, and then by supervised fine-tuning",
    "sft": "by supervised fine-tuning alone",
    "sft_control": "by supervised fine-tuning twice: the control of a distillation, without the teacher's scores",
}
_TEMPLATES = Environment(
    loader=PackageLoader("tasks.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_TEMPLATES.filters |= {"md": markdown_text, "yaml": lambda text: json.dumps(text, ensure_ascii=False)}


def model_card(
    data: ReportData,
    variant: str,
    records: Mapping[str, Record],
    files: set[str],
    where: str,
    rows_at: str,
    draft_command: str | None = None,
) -> str:
    """The card of one student (such as kd, sft or round_1) of the run that `data` reports on.

    `records` are those of the stages; `files` what lies beside the card; `where` is the report, `rows_at` the dataset,
    `draft_command` serves the teacher with the student as its draft.
    """
    base, teacher = hub_name(records["sft"].spec["model"]), hub_name(records["logits"].spec["teacher"])
    student, form = format_of(variant)
    training: dict[str, Any] = records[student].spec["training"]
    compared = comparison_rows(data)
    return _TEMPLATES.get_template("model_card.md.jinja").render(
        data=data,
        kind=variant,
        trained=_TRAINED[records[student].kind].format(k=data.k),
        base=base,
        teacher=teacher,
        licence=_licence(base, files),
        licence_file=next((name for name in sorted(files) if re.match("LICEN[CS]E", name)), None),
        teachers_licences=_special([record for record in records.values() if record.kind == "logits"]),
        training=training,
        record=records[student],
        form=form,
        quantised=quantised.sentences(data, variant),
        gguf=next((name for name in sorted(files) if name.endswith(".gguf")), None),
        label=data.variants[variant].label,
        verdict=verdict(data),
        metrics="\n".join(table(list(compared[0]), [list(row.values()) for row in compared])),
        where=where,
        rows_at=rows_at,
        draft=sentence(data, variant),
        draft_command=draft_command,
    )


def hub_name(identity: str) -> str | None:
    """The repository of a model's identity, if it came from the hub."""
    found = re.fullmatch(r"hub:([^@]+)(?:@.*)?", identity)
    return found and found[1]


def _special(scores: Iterable[Record]) -> dict[str, str]:
    """Teachers that have a licence of their own, each with where it is."""
    found = {name: LICENCES.get(name, {}) for record in scores if (name := hub_name(record.spec["teacher"]))}
    return {name: said["license_link"] for name, said in found.items() if said.get("license") == "other"}


def _licence(base: str | None, files: set[str]) -> dict[str, str]:
    """The card's fields on the licence, as the hub reads them; a student's is that of its base."""
    if base in LICENCES:
        return LICENCES[base]
    name = next((name for name in sorted(files) if re.match("LICEN[CS]E", name)), None)
    return {"license": "other", "license_link": name} if name else {}
