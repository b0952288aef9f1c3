"""Gather what a run's artifacts say, and make the page of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from infra.errors import ConfigurationError
from infra.stage import Made, OneArtifact, View
from infra.store.artifacts import ArtifactReader, ArtifactRef, Record, Workspace, read_record
from tasks.evaluate.analysis.analysis import analyse
from tasks.evaluate.benchmarks.data_files import digest
from tasks.evaluate.heldout.predictions import accuracy, from_parquet
from tasks.evaluate.variants import CONTINUED, in_order, round_of
from tasks.quantise.settings import format_of
from tasks.report import benchmarks, quantised, rounds
from tasks.report.copies import FOLDER, copy_reports
from tasks.report.data import (
    AgentUse,
    Coverage,
    DataFlow,
    ReportData,
    RunInfo,
    StageSummary,
    TeacherUse,
    Variant,
)
from tasks.report.draft import fit_of
from tasks.report.examples import choose
from tasks.report.leaderboard import page
from tasks.report.leaderboard.entry import Entry
from tasks.report.leaderboard.ranking import over_seeds, rows, verdict
from tasks.report.page import comparison_rows, render_markdown, render_page
from tasks.seeds.account import sentences
from tasks.text.categories import TaskCategories

if TYPE_CHECKING:
    import pandas as pd

KIND, BOARD_KIND = "report", "leaderboard"
STAGE_VERSION = 6
LABELS = {
    "base": "Base student",
    "sft": "SFT",
    "sft_control": "SFT control",
    "kd": "SFT + KD",
    CONTINUED: "KD control",
    "teacher": "Teacher",
}


class Report(OneArtifact):
    """The page on a run, its Markdown and its data. `about` is what it says of the run.

    `stages` are the artifacts of the trainings and what they were made from, by title; `verdicts` the benchmarks'
    results by variant and benchmark ("kd/alpaca_eval"), where any ran, and `labels` people's own (`judging.labels`).
    """

    kind: ClassVar = "report"
    makes: ClassVar = (KIND,)
    doing: ClassVar = "writing the report"

    stages: dict[str, ArtifactRef]
    evaluations: dict[str, ArtifactRef]
    about: RunInfo
    verdicts: dict[str, ArtifactRef]
    labels: str | None = None

    def workspace(self) -> Workspace:
        inputs = {
            **self.stages,
            **{f"evaluate-{name}": ref for name, ref in self.evaluations.items()},
            **{f"benchmark-{key}": ref for key, ref in self.verdicts.items()},
        }
        identity = self.about.model_dump(exclude={"reproduce", "run", "changed"})  # paths of this machine, a name
        spec = {"about": identity} | ({"labels": digest(self.labels)} if self.labels else {})
        return Workspace(KIND, STAGE_VERSION, spec, inputs)

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        data = gather(self.stages, self.evaluations, self.about, self.verdicts, self.labels)
        work.put("report.html", render_page(data).encode())
        work.put("report.md", render_markdown(data).encode())
        work.put("data.json", data.model_dump_json(indent=1).encode())
        return work.publish(("report.html", "report.md", "data.json"), {"variants": len(data.variants)}, {})

    def show(self, made: Made, view: View) -> str:
        data = report_data(made.shown)
        view.page("report-page", made.shown.uri + "report.html", "report")
        view.table("comparison", comparison_rows(data), data.title)
        view.markdown("report", ArtifactReader(made.shown).read("report.md").decode(), data.title)
        return "page, Markdown and data"


class Leaderboard(OneArtifact):
    """Several runs side by side: page, Markdown, and the table as JSON."""

    kind: ClassVar = "leaderboard"
    makes: ClassVar = (BOARD_KIND,)
    doing: ClassVar = "comparing"

    entries: list[Entry]

    def workspace(self) -> Workspace:
        spec = {"entries": [[entry.name, entry.combination, entry.failed, entry.link] for entry in self.entries]}
        inputs = {entry.name: entry.report for entry in self.entries if entry.report is not None}
        return Workspace(BOARD_KIND, STAGE_VERSION, spec, inputs)

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        entries = self.entries
        copy_reports(work, {entry.name: entry.report for entry in entries if entry.report})
        work.put("leaderboard.html", page.render_page(entries).encode())
        work.put("leaderboard.md", page.render_markdown(entries).encode())
        work.put_json(
            "leaderboard.json",
            {"verdict": verdict(entries), "rows": rows(entries), "over_seeds": over_seeds(entries)},
        )
        return work.publish(("leaderboard.", FOLDER), {"combinations": len(entries)}, {})

    def show(self, made: Made, view: View) -> str:
        view.page("leaderboard-page", made.shown.uri + "leaderboard.html", "leaderboard")
        view.table("leaderboard-table", rows(self.entries), verdict(self.entries))
        view.markdown("leaderboard", page.render_markdown(self.entries), "sweep")
        return f"{len(self.entries)} combinations"


def report_data(ref: ArtifactRef) -> ReportData:
    """What a report says."""
    return ReportData.model_validate_json(ArtifactReader(ref).read("data.json"))


def gather(
    stages: Mapping[str, ArtifactRef],
    evaluations: Mapping[str, ArtifactRef],
    about: RunInfo,
    verdicts: Mapping[str, ArtifactRef],
    labels: str | None = None,
) -> ReportData:
    """All that the page shows. Times are those of the run that made each artifact."""
    records = {name: _record(ref) for name, ref in stages.items()}
    read = {name: ArtifactReader(ref).read("predictions.parquet") for name, ref in evaluations.items()}
    tables = _on_common_rows({name: from_parquet(data) for name, data in read.items()})
    evaluated = {ref.uri: _record(ref) for ref in evaluations.values()}
    labels_of = {name: label_of(name) for name in evaluations}
    of_teacher = evaluated[evaluations["teacher"].uri].facts if "teacher" in evaluations else {}
    labels_of |= {"kd": order} if (order := about.settings.get("order")) else {}
    variants = {
        name: _variant(labels_of[name], tables[name], ref.uri, evaluated[ref.uri].facts, of_teacher)
        for name, ref in evaluations.items()
    }
    seconds = sum(record.seconds for record in evaluated.values())
    shown = [_stage(name, record, stages[name].uri) for name, record in records.items()]
    kd_evaluation = evaluations["kd"]
    shown.append(
        StageSummary(name="evaluate", seconds=seconds, uri=kd_evaluation.uri, fingerprint=kd_evaluation.fingerprint)
    )
    if verdicts:
        shown.append(_benchmark_stage(verdicts))
    coverage = records["logits"].facts["coverage"]
    return ReportData(
        **dict(about),
        made=max(record.started_at for record in [*records.values(), *evaluated.values()])[:10],
        left_out=sentences(records["seeds"].facts),
        variants=variants,
        quantised=quantised.gather(records, tables),
        stages=shown,
        curves={name: records[name].facts["curve"] for name in in_order(records) if "curve" in records[name].facts},
        coverage=Coverage.model_validate(coverage),
        scored_by=_scored_by(records, about),
        compared_with_top=evaluated[kd_evaluation.uri].facts.get("compared_with_top"),
        data_flow=_data_flow(records["augment"], records.get("categories")),
        teacher_use=_teacher_use(records.get("teacher_answers")),
        examples=choose(tables),
        analysis=analyse(tables, labels_of),
        benchmarks=benchmarks.gather(verdicts, labels_of, labels),
        rounds=rounds.gather(
            records,
            about.settings.get("rounds", {}).get("rounds", 0),
            about.settings.get("quantise", {}).get("student"),
        ),
        versions=records["kd"].versions,
    )


def label_of(name: str) -> str:
    """What a variant is called on the page."""
    student, form = format_of(name)
    number = round_of(student)
    label = LABELS[student] if number is None else f"KD + on-policy round {number}"
    return label if form is None else f"{label}, {form.upper()}"


def _record(ref: ArtifactRef) -> Record:
    record = read_record(ref.uri)
    if record is None:
        raise ConfigurationError(f"the artifact {ref.uri} is gone: run again")
    return record


def _stage(name: str, record: Record, uri: str) -> StageSummary:
    facts = {key: value for key, value in record.facts.items() if isinstance(value, int | float | str)}
    return StageSummary(
        name=name,
        seconds=record.seconds,
        uri=uri,
        fingerprint=record.fingerprint,
        counts=record.counts,
        facts=facts,
    )


def _scored_by(records: Mapping[str, Record], about: RunInfo) -> dict[str, int]:
    """Rows that each of several teachers scored, by its name and categories: the run's own first, without those."""
    found: dict[str, int] = {}
    for title, record in records.items():
        categories = TaskCategories.of(record.spec)
        if categories and title == categories.titled("logits"):
            own = f"{about.settings['teachers'][categories.named[0]]} ({', '.join(categories.named)})"
            found[about.teacher if categories.but else own] = record.counts["rows"]
    return found


def _benchmark_stage(verdicts: Mapping[str, ArtifactRef]) -> StageSummary:
    """All benchmarks as one stage; its address is that of the distilled student's first one."""
    first = next(ref for key, ref in verdicts.items() if key.startswith("kd/"))
    counts = {"results": len(verdicts)}
    taken = benchmarks.seconds(verdicts)
    return StageSummary(name="benchmarks", seconds=taken, uri=first.uri, fingerprint=first.fingerprint, counts=counts)


def _data_flow(record: Record, naming: Record | None) -> DataFlow | None:
    if not record.spec["enabled"]:
        return None
    usage = {**(naming.facts["usage"] if naming else {}), **record.facts["usage"]}
    counts = record.counts
    checked = counts.get("category_checked", 0)
    return DataFlow(
        seeds=counts["seeds"],
        expanded=counts["expanded"],
        kept=counts["rows"],
        rejected=record.facts["rejected"],
        failed=record.facts["failed"],
        drift=counts.get("drifted", 0) / checked if checked else None,
        usage={agent: _use(numbers) for agent, numbers in usage.items()},
        agent_model=record.spec["model"],
    )


def _teacher_use(record: Record | None) -> TeacherUse | None:
    if record is None:
        return None
    used = _use(record.facts["usage"]["teacher"])
    return TeacherUse(**dict(used), answers=record.counts["rows"], left_out=record.facts["left_out"])


def _use(numbers: Mapping[str, float]) -> AgentUse:
    return AgentUse(
        requests=int(numbers["requests"] + numbers["from_cache"]),
        prompt_tokens=int(numbers["prompt_tokens"]),
        completion_tokens=int(numbers["completion_tokens"]),
        cost_usd=numbers["cost_usd"],
    )


def _on_common_rows(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The rows that every variant could take, in one order: tokenizers differ in what is too long, and in lengths."""
    common = set.intersection(*(set(table["row_id"]) for table in tables.values()))
    order = [row_id for row_id in tables["kd"]["row_id"] if row_id in common]
    return {name: table.set_index("row_id").loc[order].reset_index() for name, table in tables.items()}


def _variant(
    label: str, table: pd.DataFrame, uri: str, facts: Mapping[str, Any], of_teacher: Mapping[str, Any]
) -> Variant:
    correct, compared = table["correct"], table["kl_tokens"].sum()
    return Variant(
        label=label,
        exec_accuracy=accuracy(table),
        cross_entropy=float(table["nll"].sum(skipna=False) / table["response_tokens"].sum()),
        kl_to_teacher=float(table["kl_to_teacher"].sum(skipna=False) / compared) if compared else None,
        n=len(correct),
        correct=None if correct.isna().any() else correct.tolist(),
        left_out=facts["skipped"],
        parameters=facts.get("parameters"),
        tokens_s=facts.get("tokens_s"),
        draft=fit_of(facts, of_teacher),
        uri=uri,
    )
