"""The stage in which a teacher behind an API answers the training prompts (`stored.py`: what it told as a store).

An API model cannot score a given text: it tells the log-probs of what it writes itself. So its own answers take the
place of the rows' responses, in its own words and to the bare prompt, and student and store are of the same texts.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar

from infra.errors import ConfigurationError
from infra.stage import Made, OneArtifact, View
from infra.store.artifacts import ArtifactRef, Workspace, digest_of, facts_of
from tasks.llm.agent import FreeText, Said
from tasks.llm.budget import UsageByAgent
from tasks.llm.client import LLMClient
from tasks.llm.complaints import CUT_OFF
from tasks.llm.endpoint import llm_endpoint, provider_slots
from tasks.llm.protocol import LLMEndpoint
from tasks.llm.session import connected, run_async
from tasks.llm.usefulness import BUDGET_REACHED, NoAnswer, Usefulness
from tasks.logits.api.settings import TeacherCalls
from tasks.logits.api.spoken import NEVER, Untold, answer_of
from tasks.rows import DIFFICULTY, KEPT, LAST_ALONE, REJECTED, Row, read_rows, to_parquet
from tasks.text.refusals import is_refusal

KIND = "teacher_answers"
STAGE_VERSION = 1
REFUSED = "the model declines"
WITH_TOOLS = "uses tools"
REPEATED = "asks what another row asks"
TEACHER = FreeText("teacher", Said, __name__)
_PROBE = [{"role": "user", "content": "Say in one short sentence what a library is."}]
_SAYS_NOTHING = {CUT_OFF, BUDGET_REACHED}  # of what a provider tells
_ROWS_A_PIECE = 500
_DONE = "done/"
TOLD = "logprobs"  # a column beside the rows': what the provider told, as JSON
_STAY = {LAST_ALONE, DIFFICULTY}  # of a row's verdicts: they are not of its response


class AskTeacher(OneArtifact):
    """The training rows with the teacher's own answers for responses, each with its log-probs as they were told."""

    kind: ClassVar = "teacher_answers"
    makes: ClassVar = (KIND,)
    doing: ClassVar = "asking the teacher"

    rows: ArtifactRef
    model: str
    k: int
    calls: TeacherCalls

    def workspace(self) -> Workspace:
        spec = {"model": self.model, "k": self.k, "calls": self.calls.identity()}
        return Workspace(KIND, STAGE_VERSION, spec, {"rows": self.rows})

    def slots(self, missing: Mapping[str, Workspace]) -> Mapping[str, int]:
        return provider_slots(self.model, self.calls)

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        with llm_endpoint(self.model, self.calls, view.note) as endpoint:
            return ask(work, self.rows, self.k, self.calls, endpoint, view.tick, view.note)

    def show(self, made: Made, view: View) -> str:
        counts, facts = made.shown.counts, facts_of(made.shown)
        used = facts["usage"][TEACHER.name]
        if missing := counts["left_out"] - facts["left_out"].get(REPEATED, 0):
            view.warn(f"{missing:,} prompts have no answer of the teacher to learn from")
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(facts["left_out"].items()))
        said = f"{counts['rows']:,} answers of {self.model}, ${used['cost_usd']:,.2f}"
        return said + (f"; left out {left_out}" if left_out else "")


def ask(
    work: Workspace,
    rows: ArtifactRef,
    k: int,
    calls: TeacherCalls,
    endpoint: LLMEndpoint,
    tick: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> ArtifactRef:
    """Ask for every row that has no answer yet; raises ConfigurationError where the provider tells no log-probs.

    A killed run's finished pieces are found, and its other answers in the cache: none is paid twice.
    """
    return run_async(_ask(work, rows, k, calls, endpoint, tick, note))


async def _ask(
    work: Workspace,
    given: ArtifactRef,
    k: int,
    calls: TeacherCalls,
    endpoint: LLMEndpoint,
    tick: Callable[[int, int], None],
    note: Callable[[str], None],
) -> ArtifactRef:
    total, done = given.counts["rows"], 0
    pieces = _Pieces(given)
    names: list[str] = []

    def answered(rows: int = 1) -> None:
        nonlocal done
        done += rows
        tick(done, total)

    async with connected(endpoint, calls, note=note) as client:
        probed, usefulness = False, Usefulness(functools.partial(_hopeless, calls))
        for name, rows in pieces:
            names.append(name)
            if work.has(_DONE + name):
                for used in work.get_json(_DONE + name)["usage"].values():
                    client.ledger.settle(0.0, used["cost_usd"])  # it is of the budget
                answered(len(rows))
                continue
            usage = UsageByAgent()
            if not probed:
                await _probe(client, usage, k, calls)
                probed = True
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_answered(client, usage, usefulness, row, k, answered)) for row in rows]
            await asyncio.to_thread(_keep, work, name, [task.result() for task in tasks], usage)
    return _published(work, names, pieces.repeated)


class _Pieces:
    """The rows in pieces, each with its name, every prompt once; then, how many rows `repeated` another's prompt."""

    def __init__(self, rows: ArtifactRef):
        self.repeated = 0
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[str, list[Row]]]:
        left, number = self._once(), 0
        while piece := list(islice(left, _ROWS_A_PIECE)):
            yield f"{number:05}", piece
            number += 1

    def _once(self) -> Iterator[Row]:
        seen: set[str] = set()
        for row in read_rows(self._rows, KEPT):
            if (prompt := digest_of([message.model_dump() for message in row.prompt])) in seen:
                self.repeated += 1
            else:
                seen.add(prompt)
                yield row


async def _probe(client: LLMClient, usage: UsageByAgent, k: int, calls: TeacherCalls) -> None:
    """One short question of our own, before all others: raises ConfigurationError where the answers are of no use."""
    model = client.endpoint.model
    advice = f"{calls.model_setting}={model} cannot be learned from white-box"
    otherwise = "choose another model, or a teacher whose weights you have with another scoring.engine"
    try:
        said, reply = await client.converse(usage, TEACHER, _PROBE, top_logprobs=k)
    except NoAnswer as nothing:
        if nothing.reason in _SAYS_NOTHING:
            return
        raise ConfigurationError(f"{advice}: asked for top_logprobs={k}, {nothing}: lower k, or {otherwise}") from None
    try:
        answer = answer_of(said.text, reply.get("logprobs"), k, stopped=reply["finish_reason"] == "stop")
    except Untold as error:
        raise ConfigurationError(f"{advice}: its answer {error}; {otherwise}") from None
    if k > 1 and all(value <= NEVER for one in answer.tokens for _other, value in one.alternatives[1:]):
        raise ConfigurationError(f"{advice}: it tells 0 and {NEVER:g} in place of log-probs; {otherwise}")
    if (most := max(len(one.alternatives) for one in answer.tokens)) < k:
        raise ConfigurationError(f"{model} tells {most} alternatives a token and not k={k}: set k={max(most, 1)}")


def _hopeless(calls: TeacherCalls, agent: str, model: str, counts: str, last: NoAnswer) -> ConfigurationError:
    """Short answers are well told and those to the rows are not: said before all are paid."""
    return ConfigurationError(
        f"the answers of {calls.model_setting}={model} to the rows are of no use ({counts}): an answer must be told "
        "token by token in the bytes of its text; choose another model, answers so far are kept"
    )


async def _answered(
    client: LLMClient, usage: UsageByAgent, usefulness: Usefulness, row: Row, k: int, answered: Callable[[], None]
) -> tuple[Row, list[Any] | str]:
    """The row with the teacher's answer and what was told of its tokens, or the row and why it is left out."""
    try:
        if row.uses_tools:
            return row, WITH_TOOLS
        async with usefulness.turn(TEACHER.name, client.endpoint.model):
            text, told = await _told(client, usage, row, k)
    except NoAnswer as nothing:
        return row, nothing.reason
    finally:
        answered()
    verdicts = {by: verdict for by, verdict in row.verdicts.items() if by in _STAY}
    lineage = (*row.lineage, "the teacher's answer")
    marks = {"response": text, "scores": {}, "verdicts": verdicts, "lineage": lineage}
    return row.model_copy(update=marks), told


async def _told(client: LLMClient, usage: UsageByAgent, row: Row, k: int) -> tuple[str, list[Any]]:
    """The teacher's answer, and what `read_answers` reads of its tokens; raises NoAnswer where that cannot be."""
    messages = [{"role": message.role, "content": message.content} for message in row.prompt]
    said, reply = await client.converse(usage, TEACHER, messages, top_logprobs=k)
    if is_refusal(said.text):
        raise NoAnswer(TEACHER.name, REFUSED)
    told, stopped = reply.get("logprobs"), reply["finish_reason"] == "stop"
    try:
        answer_of(said.text, told, k, stopped=stopped)
    except Untold as error:
        raise NoAnswer(TEACHER.name, str(error)) from None
    return said.text, [told, stopped]


def _keep(work: Workspace, name: str, answers: list[tuple[Row, list[Any] | str]], usage: UsageByAgent) -> None:
    """Put a piece's rows and its counts, which come last."""
    kept = [(row, told) for row, told in answers if not isinstance(told, str)]
    left_out = [(row, told) for row, told in answers if isinstance(told, str)]
    if left_out:
        why = {"agent": [TEACHER.name] * len(left_out), "reason": [why for _row, why in left_out]}
        work.put(f"{REJECTED}{name}.parquet", to_parquet([row for row, _why in left_out], why))
    column = {TOLD: [json.dumps(told, ensure_ascii=False) for _row, told in kept]}
    work.put(f"{KEPT}{name}.parquet", to_parquet([row for row, _told in kept], column))
    reasons = Counter(why for _row, why in left_out)
    work.put_json(_DONE + name, {"rows": len(kept), "left_out": dict(reasons), "usage": usage.plain()})


def _published(work: Workspace, names: list[str], repeated: int) -> ArtifactRef:
    rows, left_out, usage = 0, Counter({REPEATED: repeated} if repeated else {}), UsageByAgent()
    for name in names:
        piece = work.get_json(_DONE + name)
        rows += piece["rows"]
        left_out += Counter(piece["left_out"])
        usage.merge(piece["usage"])
    if not rows:
        raise ConfigurationError(f"no answer of the teacher can be used: {dict(left_out)}")
    counts = {"rows": rows, "left_out": left_out.total()}
    return work.publish((KEPT, REJECTED), counts, {"left_out": dict(left_out), "usage": usage.plain()})
