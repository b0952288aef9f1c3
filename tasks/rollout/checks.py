"""The stages that look at rounds: rows set aside for it, student beside teacher on its answers and on those rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from infra.errors import ConfigurationError
from infra.stage import Made, OneArtifact, View
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace, facts_of
from tasks.logits.stage import ScoreTeacher
from tasks.logits.store.reader import TopKReader
from tasks.rollout.choice import CUT_OFF, draw, limit
from tasks.rollout.overlap import Overlap, pairs
from tasks.rollout.rails import no_gain, running_away, too_far_apart
from tasks.rollout.settings import Rounds
from tasks.rows import CONVERSATIONS, KEPT, Row, from_parquet, read_rows, to_parquet

STAGE_VERSION = 1
STOPS = "stops"  # among the counts: 1 where no further round is trained


class SetAside(OneArtifact):
    """`part` of `rows`: the validation part, or those that are trained on, as a digest of their seeds decides.

    The rows that the agents made of one seed are on one side, so the validation part has a few more than `number`.
    """

    kind: ClassVar = "set_aside"
    makes: ClassVar = ("set_aside",)
    doing: ClassVar = "setting rows aside"

    rows: ArtifactRef
    number: int
    part: Literal["trained", "validation"]
    seed: int

    @property
    def title(self) -> str:
        return f"{self.part}_rows"

    def workspace(self) -> Workspace:
        spec = {"rows": self.number, "part": self.part, "seed": self.seed, "by": "seed"}
        return Workspace(self.kind, STAGE_VERSION, spec, {"rows": self.rows})

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        draws_N = np.fromiter(map(self._draw, read_rows(self.rows, KEPT)), np.uint64)
        most = limit(draws_N, self.number)
        if 2 * (aside := int((draws_N <= most).sum())) > len(draws_N):
            raise ConfigurationError(
                f"rounds.validation_rows={self.number:,} takes {aside:,} of the {len(draws_N):,} training rows, with "
                "all that come of the same seeds, and that is more than half: set fewer"
            )
        counts = {"rows": 0, CONVERSATIONS: 0}
        for index, (_name, data) in enumerate(ArtifactReader(self.rows).stream(KEPT)):
            is_aside = [(row, self._draw(row) <= most) for row in from_parquet(data)]
            rows = [row for row, aside in is_aside if aside == (self.part == "validation")]
            if rows:
                work.put(f"{KEPT}{index:05}.parquet", to_parquet(rows))
            counts["rows"] += len(rows)
            counts[CONVERSATIONS] += sum(bool(row.earlier_answers) for row in rows)
        return work.publish((KEPT,), counts, {})

    def _draw(self, row: Row) -> int:
        return draw(row.origin_seed or row.id, self.seed, 0)

    def show(self, made: Made, view: View) -> str:
        return f"{made.shown.counts['rows']:,} rows"


class ScoreOwn(ScoreTeacher):
    """What a student makes of its own answers, or of the validation part: scored as its teacher scores them."""

    kind: ClassVar = "own_scores"
    doing: ClassVar = "scoring with the student"

    of: Literal["rollouts", "validation"]
    round: int

    @property
    def title(self) -> str:
        return f"own_{self.round}" if self.of == "rollouts" else f"validation_scores_{self.round}"


class BesideTeacher(OneArtifact):
    """The scores of student and teacher on the same rows, side by side; `before` is the same of the round before.

    Of several teachers, `routed` are the stores of the others.
    """

    teacher: ArtifactRef
    routed: tuple[ArtifactRef, ...] = ()
    student: ArtifactRef
    before: ArtifactRef | None
    rounds: Rounds
    round: int

    def between(self, spec: Mapping[str, Any], **inputs: ArtifactRef) -> Workspace:
        """Where it is, by what it looks at."""
        teachers = {f"teacher_{number}": store for number, store in enumerate(self.routed, 2)}
        inputs |= {"teacher": self.teacher, **teachers, "student": self.student}
        inputs |= {"before": self.before} if self.before else {}
        return Workspace(self.kind, STAGE_VERSION, {"round": self.round, **spec}, inputs)

    def compared(self, *, in_order: bool) -> Overlap:
        """Raises ConfigurationError where the two have scored no row alike."""
        found = Overlap()
        scored = itertools.chain.from_iterable(map(TopKReader, (self.teacher, *self.routed)))
        for theirs, ours in pairs(scored, TopKReader(self.student), in_order=in_order):
            found.add(theirs, ours)
        if not found.rows:
            raise ConfigurationError(
                f"student and teacher have scored no row in the same tokens ({found.unlike:,} in others): "
                "set rounds.rounds=0, or choose a teacher that shares the student's tokenizer and chat template"
            )
        return found


class CompareRollouts(BesideTeacher):
    """Both on the student's own answers; in the first round it says whether any is trained."""

    kind: ClassVar = "overlap"
    makes: ClassVar = ("overlap",)
    doing: ClassVar = "comparing student and teacher"

    rollouts: ArtifactRef

    @property
    def title(self) -> str:
        return f"overlap_{self.round}"

    @property
    def _least(self) -> float:
        return 0.0 if self.before else self.rounds.least_agreement

    def workspace(self) -> Workspace:
        return self.between({"least_agreement": self._least}, rollouts=self.rollouts)

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        found = self.compared(in_order=not self.routed)
        counts, of_rollouts = self.rollouts.counts, facts_of(self.rollouts)
        answers = counts["rows"] + counts["rejected"]
        facts: dict[str, Any] = {
            **found.summary(),
            "answer_tokens": round(counts["generated_tokens"] / answers, 2),
            "cut_off": round(of_rollouts["left_out"].get(CUT_OFF, 0) / answers, 6),
            "left_out": round(counts["rejected"] / answers, 6),
        }
        stop = too_far_apart(facts["agreement"], self._least)
        facts["said"] = [stop] if stop else []
        if self.before:
            facts["said"] += running_away(self.round, facts_of(self.before), facts)
        return work.publish((), {"answers": found.rows, "tokens": found.tokens, STOPS: int(stop is not None)}, facts)

    def show(self, made: Made, view: View) -> str:
        facts, tokens = facts_of(made.shown), made.shown.counts["tokens"]
        for sentence in facts["said"]:
            view.warn(sentence)
        rows = [{"tokens of an answer": name, **numbers} for name, numbers in facts["by_position"].items()]
        view.table(f"overlap-{self.round}", rows, "Student and teacher on the student's own answers")
        return (
            f"the same token likeliest at {facts['agreement']:.1%} of {tokens:,} tokens, KL at least {facts['kl']:.3f} "
            f"nats a token; answers of {facts['answer_tokens']:,.0f} tokens, {facts['cut_off']:.1%} of them cut off"
        )


class CheckRound(BesideTeacher):
    """Both on the validation part, after a round (0: before the first), against the one `before`."""

    kind: ClassVar = "validation"
    makes: ClassVar = ("validation",)
    doing: ClassVar = "checking the student on the validation part"

    @property
    def title(self) -> str:
        return f"validation_{self.round}"

    def workspace(self) -> Workspace:
        return self.between({"least_gain": self.rounds.least_gain} if self.before else {})

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        found = self.compared(in_order=False)
        facts: dict[str, Any] = found.summary()
        stop = self.before and no_gain(self.round, facts_of(self.before)["kl"], facts["kl"], self.rounds.least_gain)
        facts["said"] = [stop] if stop else []
        return work.publish((), {"rows": found.rows, "tokens": found.tokens, STOPS: int(bool(stop))}, facts)

    def show(self, made: Made, view: View) -> str:
        facts, rows = facts_of(made.shown), made.shown.counts["rows"]
        said = f"KL to the teacher at least {facts['kl']:.4f} nats a token on {rows:,} validation rows"
        return "; ".join([said, *facts["said"]])
