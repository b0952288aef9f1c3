"""The stage that makes an experiment's page out of the reports of its runs."""

from __future__ import annotations

from typing import ClassVar

from infra.stage import Made, OneArtifact, View
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace
from tasks.report.copies import FOLDER, copy_reports
from tasks.report.experiment import page
from tasks.report.experiment.arms import ArmRun
from tasks.report.experiment.choice import recommended, verdict
from tasks.report.experiment.coverage import curves
from tasks.report.experiment.gather import arms_of
from tasks.report.experiment.question import ExperimentQuestion
from tasks.report.stage import report_data

KIND = "experiment"
STAGE_VERSION = 3


class ExperimentPage(OneArtifact):
    """An experiment's arms beside each other: page, Markdown, a Parquet table of every measurement, and JSON."""

    kind: ClassVar = "experiment"
    makes: ClassVar = (KIND,)
    doing: ClassVar = "comparing the arms"

    question: ExperimentQuestion
    runs: list[ArmRun]

    def workspace(self) -> Workspace:
        spec = {
            "question": self.question.model_dump(mode="json"),
            "runs": [run.model_dump(mode="json", exclude={"report"}) for run in self.runs],
        }
        inputs = {f"{run.arm}, seed {run.seed}": run.report for run in self.runs if run.report is not None}
        return Workspace(KIND, STAGE_VERSION, spec, inputs)

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        import pandas as pd

        question, runs = self.question, self.runs
        reports = [report_data(run.report) if run.report else None for run in runs]
        arms, demo = arms_of(runs, reports), any(data.demo for data in reports if data)
        copy_reports(work, {page.run_name(run): run.report for run in runs if run.report})
        work.put("experiment.html", page.render_page(question, runs, arms, demo=demo).encode())
        work.put("experiment.md", page.render_markdown(question, runs, arms, demo=demo).encode())
        work.put("experiment.parquet", pd.DataFrame(page.measurements(arms)).to_parquet(index=False))
        found = {
            "verdict": verdict(question, arms, len(page.failures(runs))),
            "recommended": recommended(question, arms).name if arms and question.asks != "trend" else None,
            "rows": page.rows(question, arms),
            "coverage": [{"arms": [arm.name for arm in of], "by_k": coverage.by_k} for coverage, of in curves(arms)],
        }
        work.put_json("experiment.json", found)
        return work.publish(("experiment.", FOLDER), {"arms": len(arms), "runs": len(runs)}, {})

    def show(self, made: Made, view: View) -> str:
        reader = ArtifactReader(made.shown)
        found = reader.read_json("experiment.json")
        view.page("experiment-page", made.shown.uri + "experiment.html", "experiment's page")
        view.table("experiment-table", found["rows"], found["verdict"])
        view.markdown("experiment", reader.read("experiment.md").decode(), self.question.title)
        return f"{made.shown.counts['arms']} arms, {made.shown.counts['runs']} runs"
