"""The stage around the quantising program: a student in one format, as an artifact."""

from __future__ import annotations

from typing import ClassVar

from infra.processes import program
from infra.processes.supervise import Event, run_supervised
from infra.stage import Made, OneArtifact, View
from infra.store.artifacts import ArtifactRef, Workspace, facts_of
from tasks.models import ModelSource
from tasks.quantise.settings import GGUF, Format

KIND = "quantised"
STAGE_VERSION = 1
_STALL_TIMEOUT_S = 3600.0  # a large student takes long to convert
_LIKE = 0.9  # share of next tokens that llama.cpp gives as transformers does; the rest is rounding


class Quantise(OneArtifact):
    """`student` in a format: `model/` to evaluate (and for INT8 and FP8 to ship), `gguf/` for llama.cpp to ship."""

    kind: ClassVar = "quantise"
    makes: ClassVar = (KIND,)
    doing: ClassVar = "quantising"
    on_workers: ClassVar = True

    name: str
    student: ArtifactRef
    format: Format

    @property
    def title(self) -> str:
        return self.name

    def workspace(self) -> Workspace:
        return Workspace(KIND, STAGE_VERSION, {"format": self.format}, {"student": self.student})

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        spec = {
            "model": ModelSource(name=self.name, artifact=self.student).model_dump(),
            "format": self.format,
            "workspace": work.description(),
        }
        result = run_supervised(
            KIND,
            program.command("tasks.quantise.program"),
            spec,
            on_event=view.follow(describe),
            stall_timeout_s=_STALL_TIMEOUT_S,
            log_uri=f"{work.uri}log.txt",
        )
        files = ("model/", "gguf/") if self.format in GGUF else ("model/",)
        return work.publish(files, result["counts"], result["facts"])

    def show(self, made: Made, view: View) -> str:
        counts, facts = made.shown.counts, facts_of(made.shown)
        said = f"{counts['bytes'] / 1e6:,.1f} MB of {counts['student_bytes'] / 1e6:,.1f} MB"
        if fallen := counts.get("fell_back"):
            said += f"; {fallen:,} of {counts['quantised']:,} matrices are in more bits than {self.format}"
            view.note(f"{self.name}: {fallen:,} matrices have rows that {self.format} does not divide")
        if "tokens" in facts:
            said += f"; llama.cpp gives {facts['agreed']} of {facts['tokens']} next tokens as transformers does"
            if facts["agreed"] < _LIKE * facts["tokens"]:
                view.warn(f"{self.name}: llama.cpp answers otherwise than what is evaluated here: look at its answers")
            if not all(facts["texts_alike"]):
                view.warn(f"{self.name}: llama.cpp cuts some texts into other tokens than the student's tokenizer")
        return said


def describe(event: Event) -> str:
    """A progress event as a short note."""
    return str(event["doing"])
