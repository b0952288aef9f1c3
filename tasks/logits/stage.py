"""The stage around the scoring program: its identity, its supervised process, its artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from infra import devices
from infra.devices import Gpus
from infra.needs import Needs
from infra.processes import program
from infra.processes.supervise import Event, run_supervised
from infra.processes.vllm_environment import vllm_environment
from infra.stage import Made, OneArtifact, View, skipped_note
from infra.store.artifacts import ArtifactRef, Workspace, facts_of
from tasks.engines.pieces import STALL_TIMEOUT_S
from tasks.logits.parallel import scoring_engines, scoring_parallel
from tasks.logits.settings import Scoring
from tasks.logits.store.reader import SHARDS, TOKENIZER
from tasks.models import ModelSource
from tasks.rows import Turns
from tasks.text.categories import TaskCategories
from tasks.tokens.rows import tokenizer_digests
from tasks.tokens.spans import turns_identity, unsupervised_note

KIND = "logits"
STAGE_VERSION = 4


class ScoreTeacher(OneArtifact):
    """The teacher's top-K log-probabilities of every supervised token (paper, section 3.2).

    The store is independent of the student and of any training. Any number of processes make it together, a shard at
    a time. Where there are several teachers, each scores the rows of its own `categories`.
    """

    kind: ClassVar = "logits"
    makes: ClassVar = (KIND,)
    doing: ClassVar = "scoring with the teacher"
    on_workers: ClassVar = True

    rows: ArtifactRef
    teacher: ModelSource
    k: int
    scoring: Scoring
    turns: Turns = "last"
    categories: TaskCategories | None = None

    @property
    def title(self) -> str:
        return self.titled(self.kind)

    def titled(self, title: str) -> str:
        return self.categories.titled(title) if self.categories else title

    @property
    def heldout(self) -> dict[str, Any]:
        """What says that held-out rows are scored, and how many at most; nothing where training rows are."""
        return {}

    @property
    def is_shared(self) -> bool:
        return True

    def workspace(self) -> Workspace:
        spec = {
            "teacher": self.teacher.identity(),
            "k": self.k,
            "max_length": self.scoring.max_length,
            "max_error": self.scoring.max_error,
            "tokens_per_shard": self.scoring.tokens_per_shard,
            "tokenizer": tokenizer_digests(self.teacher),
            **turns_identity(self.turns),
            **self.heldout,
            **self.scoring.rounding(),
            **(self.categories.identity() if self.categories else {}),
        }
        return Workspace(KIND, STAGE_VERSION, spec, {"rows": self.rows})

    def slots(self, missing: Mapping[str, Workspace]) -> Mapping[str, int]:
        return {} if self.scoring.is_elsewhere else {devices.GPU: devices.gpu_slots(self._gpus(devices.here()))}

    def needs(self, offered: Gpus | None) -> Needs | None:
        if self.scoring.is_elsewhere:
            return Needs.without_gpus()
        if offered is None and not self.scoring.tensor_parallel:
            return None
        return Needs.of_engine(self._gpus(offered))

    def _gpus(self, offered: Gpus | None) -> int:
        """Of all engines together."""
        parallel = scoring_parallel(self.scoring, self.teacher, offered)
        return parallel * self.scoring.pipeline_parallel * scoring_engines(self.scoring, parallel, offered)

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        on_event = view.follow(describe)
        how = self.scoring, on_event, self.turns, self.heldout, self.categories
        return score(work, self.rows, self.teacher, self.k, *how)

    def show(self, made: Made, view: View) -> str:
        facts = facts_of(made.shown)
        if not made.shown.counts["rows"]:
            view.warn(f"no row is of the task categories of {self.title}")
            return "nothing to score"
        for repaired in facts["shards_repaired"] if made.new else []:
            view.warn(f"{repaired}; its rows were scored again")
        return shown_store(made.shown, self.k, view)


def shown_store(store: ArtifactRef, k: int, view: View) -> str:
    """How much of the teacher's probability a store holds, and what it came to in a line."""
    facts = facts_of(store)
    coverage = facts["coverage"]
    if coverage["warning"]:
        view.warn(coverage["warning"])
    tables = {"task category": coverage["by_category"], "position in the answer": coverage["by_position"]}
    rows = [{"by": by, "of": name, **mass} for by, table in tables.items() for name, mass in table.items()]
    view.table("top-k-mass", rows, f"Mean probability that the teacher's top {k} hold")
    left_out = skipped_note(facts["skipped"]) + unsupervised_note(facts)
    tokens = f"{store.counts['tokens']:,} tokens, top {k} hold {coverage['mean']:.1%} of the probability"
    return f"{tokens}, {facts['bytes_per_token']:g} bytes a token{left_out}"


class ScoreHeldout(ScoreTeacher):
    """The same of held-out rows: `rows` are seeds, of which evaluation takes at most `max_rows`."""

    kind: ClassVar = "heldout_scores"
    doing: ClassVar = "scoring the held-out rows with the teacher"

    max_rows: int | None = None

    @property
    def heldout(self) -> dict[str, Any]:
        return {"heldout": {"max_rows": self.max_rows}}


def score(
    work: Workspace,
    rows: ArtifactRef,
    teacher: ModelSource,
    k: int,
    scoring: Scoring,
    on_event: Callable[[Event], None],
    turns: Turns = "last",
    heldout: Mapping[str, Any] | None = None,
    categories: TaskCategories | None = None,
) -> ArtifactRef:
    """Score in a supervised process, which starts one for each engine where there are several; finished shards are kept
    over kills and retries.
    """
    spec = {
        "rows": rows.model_dump(),
        "teacher": teacher.model_dump(),
        "k": k,
        "scoring": scoring.model_dump(),
        "turns": turns,
        **(heldout or {}),
        **(categories.identity() if categories else {}),
        "workspace": work.description(),
    }
    result = run_supervised(
        KIND,
        program.command("tasks.logits.program"),
        spec,
        on_event=on_event,
        env=vllm_environment(),
        stall_timeout_s=STALL_TIMEOUT_S,
        timeout_h=scoring.timeout_h,
        log_uri=f"{work.uri}log.txt",
    )
    return work.publish((SHARDS, TOKENIZER), result["counts"], result["facts"])


def describe(event: Event) -> str:
    """A progress event as a short note."""
    by = f" by {event['engines']} engines" if event["engines"] > 1 else ""
    return f"{event['tokens_s']:,.0f} tokens/s{by}"
