"""The stages of an on-policy round before its training: the student answers, the teacher scores what it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from infra import devices
from infra.devices import Gpus
from infra.needs import Needs
from infra.processes import program
from infra.processes.supervise import Event, run_supervised
from infra.processes.vllm_environment import vllm_environment
from infra.stage import Made, OneArtifact, View, skipped_note
from infra.store.artifacts import ArtifactRef, Workspace, facts_of
from tasks.engines.pieces import STALL_TIMEOUT_S
from tasks.logits.stage import ScoreTeacher
from tasks.models import ModelSource
from tasks.rollout.parallel import rollout_engines, rollout_parallel
from tasks.rollout.settings import Rounds
from tasks.rows import KEPT, REJECTED
from tasks.tokens.written import KIND

STAGE_VERSION = 1


class Rollout(OneArtifact):
    """A student's own answers to prompts of `rows`, in the tokens that it wrote; with a verdict where one can be run.

    `max_length` is of prompt and answer together, in tokens. `seeds` has the databases that answers are run on. Any
    number of processes make it together, a piece at a time.
    """

    kind: ClassVar = "rollout"
    makes: ClassVar = (KIND,)
    doing: ClassVar = "answering with the student"
    on_workers: ClassVar = True

    model: ModelSource
    rows: ArtifactRef
    seeds: ArtifactRef
    rounds: Rounds
    round: int
    max_length: int
    seed: int

    @property
    def title(self) -> str:
        return f"rollout_{self.round}"

    @property
    def is_shared(self) -> bool:
        return True

    def workspace(self) -> Workspace:
        spec = {
            "model": self.model.identity(),
            "round": self.round,
            "rollout": self.rounds.identity(),
            "max_length": self.max_length,
            "seed": self.seed,
        }
        return Workspace(KIND, STAGE_VERSION, spec, {"rows": self.rows, "seeds": self.seeds})

    def slots(self, missing: Mapping[str, Workspace]) -> Mapping[str, int]:
        return {devices.GPU: devices.gpu_slots(self._gpus(devices.here()))}

    def needs(self, offered: Gpus | None) -> Needs | None:
        if offered is None and not self.rounds.tensor_parallel:
            return None
        return Needs.of_engine(self._gpus(offered))

    def _gpus(self, offered: Gpus | None) -> int:
        """Of all engines together."""
        parallel = rollout_parallel(self.rounds, self.model, self.max_length, offered)
        return parallel * rollout_engines(self.rounds, parallel, offered)

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        spec = self.model_dump(mode="json") | {"workspace": work.description()}
        result = run_supervised(
            KIND,
            program.command("tasks.rollout.program"),
            spec,
            on_event=view.follow(describe),
            env=vllm_environment(),
            stall_timeout_s=STALL_TIMEOUT_S,
            timeout_h=self.rounds.timeout_h,
            log_uri=f"{work.uri}log.txt",
        )
        return work.publish((KEPT, REJECTED), result["counts"], result["facts"])

    def show(self, made: Made, view: View) -> str:
        counts, facts = made.shown.counts, facts_of(made.shown)
        said = f"{counts['rows']:,} answers to {counts['prompts']:,} prompts"
        if judged := counts["right"] + counts["wrong"]:
            said += f", {counts['right'] / judged:.1%} of them right"
        if facts["left_out"]:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(facts["left_out"].items()))
            said += f"; left out {reasons}"
        return said + skipped_note(facts["skipped"])


class ScoreRollouts(ScoreTeacher):
    """What the teacher makes of a student's answers in one round: a store as any other."""

    kind: ClassVar = "rollout_scores"
    doing: ClassVar = "scoring the student's answers"

    round: int

    @property
    def title(self) -> str:
        return self.titled(f"logits_{self.round}")


def describe(event: Event) -> str:
    """A progress event as a short note."""
    by = f" by {event['engines']} engines" if event["engines"] > 1 else ""
    return f"{event['tokens_s']:,.0f} tokens/s{by}"
