"""The rollout program: the student answers prompts of training rows, a piece after the other, each kept as it is done.

python -m tasks.rollout.program FOLDER

Any number of these work side by side: each claims a piece in storage before it answers it, and ends when all pieces
are there, whoever answered them. One piece's rows are in memory at a time.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from infra import devices
from infra.errors import ConfigurationError
from infra.processes import child
from infra.store.artifacts import ArtifactRef, Workspace
from infra.store.claims import Claims, Pauses
from tasks.engines.generation import Ends, Generator, Prompt, Sampling, TransformersGenerator, vllm_generator
from tasks.evaluate.heldout.execution import mark
from tasks.evaluate.heldout.scoring import load_model
from tasks.models import ModelSource, load_tokenizer
from tasks.rollout.choice import draw, limit, why_left_out
from tasks.rollout.parallel import rollout_parallel
from tasks.rollout.settings import Rounds
from tasks.rows import KEPT, REJECTED, Row, read_rows, to_parquet
from tasks.seeds.stage import open_databases
from tasks.tokens.rows import ChatFormat, Skipped, TokenisedRow, tokenise, tokenizer_digests
from tasks.tokens.written import KIND, Written, written_parquet

CLAIMS, DONE = "claims/", "done/"
PROMPTS_A_PIECE = 2048
EXECUTION = "execution"  # among a row's verdicts: whether the answer gives the right result
_RIGHT, _WRONG = "right", "wrong"


@dataclass(frozen=True)
class _Task:
    """What the spec says, resolved."""

    work: Workspace
    student: ModelSource
    rows: ArtifactRef
    how: Rounds
    round: int
    seed: int
    ends: Ends
    databases: dict[str, Any]

    @staticmethod
    def of(spec: dict[str, Any]) -> _Task:
        student = ModelSource.model_validate(spec["model"])
        ends = Ends.of(student, load_tokenizer(student))
        return _Task(
            Workspace.from_description(spec["workspace"]),
            student,
            ArtifactRef.model_validate(spec["rows"]),
            Rounds.model_validate(spec["rounds"]),
            spec["round"],
            spec["seed"],
            replace(ends, context=min(ends.context, spec["max_length"])),
            open_databases(ArtifactRef.model_validate(spec["seeds"])),
        )

    def pieces(self) -> Iterator[tuple[str, list[Row]]]:
        """The rows that are asked, in the order of the artifact, each piece with its name."""
        of_round = self.seed, self.round
        draws = (draw(row.id, *of_round) for row in read_rows(self.rows, KEPT)) if self.how.prompts else ()
        most = limit(draws, self.how.prompts)
        asked = (row for row in read_rows(self.rows, KEPT) if draw(row.id, *of_round) <= most)
        number = 0
        while piece := list(islice(asked, PROMPTS_A_PIECE)):
            yield f"{number:05}", piece
            number += 1


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Answer all prompts; returns counts and facts of the whole."""
    task = _Task.of(spec)
    generator: Generator | None = None
    names: list[str] = []
    total, tokens, began = min(task.rows.counts["rows"], task.how.prompts or task.rows.counts["rows"]), 0, 0.0
    pauses, waiting = Pauses(), True

    def on_answers(generated: int) -> None:
        nonlocal tokens
        tokens += generated
        reporter.progress(min(PROMPTS_A_PIECE * len(names), total), total, tokens_s=tokens / (time.monotonic() - began))

    with (
        Claims(task.work.uri + CLAIMS) as claims,
        child.abort_if_a_child_dies(reporter.folder, "the engine that generates"),
    ):
        while waiting:
            waiting, names = False, []
            for name, rows in task.pieces():
                names.append(name)
                if task.work.has(DONE + name):
                    continue
                if not claims.take(name):
                    waiting = True
                    continue
                if not task.work.has(DONE + name):  # since we looked
                    if generator is None:
                        with reporter.loading(task.how.engine):
                            generator = _generator(task, reporter)
                        began = time.monotonic()
                    _answer(task, name, rows, generator, on_answers)
                claims.release(name)
            if waiting:
                time.sleep(pauses.next())
        if generator is not None:
            generator.close()
    return _summary(task, names)


def _summary(task: _Task, names: list[str]) -> dict[str, Any]:
    """All pieces together; ConfigurationError where no answer can be used."""
    counts, left_out, skipped = Counter[str](), Counter[str](), Counter[str]()
    for name in names:
        of_piece = task.work.get_json(DONE + name)
        counts += Counter(of_piece["counts"])
        left_out += Counter(of_piece["left_out"])
        skipped += Counter(of_piece["skipped"])
    if not counts["rows"]:
        raise ConfigurationError(f"no answer of the student can be used: {dict(left_out + skipped)}")
    named = ("prompts", "rows", "tokens", "generated_tokens", _RIGHT, _WRONG)
    return {
        "counts": {**{name: counts[name] for name in named}, "rejected": left_out.total()},
        "facts": {
            "left_out": dict(left_out),
            "skipped": dict(skipped),
            "tokenizer": tokenizer_digests(task.student),
            "engine": task.how.engine,
        },
    }


def _generator(task: _Task, reporter: child.Reporter) -> Generator:
    how, ends = task.how, task.ends
    if how.engine == "transformers":
        return TransformersGenerator(load_model(task.student, how.dtype), ends, how.max_new_tokens, how.batch_rows)
    parallel = rollout_parallel(how, task.student, ends.context, devices.here(), reporter.note)
    return vllm_generator(task.student, ends, ends.context, how.max_new_tokens, how.dtype, parallel, how.gpu_memory)


def _answer(task: _Task, name: str, rows: list[Row], generator: Generator, on_answers: Callable[[int], None]) -> None:
    """Put a piece's answers, those left out, and its counts; `on_answers` hears the tokens of each prompt's."""
    how, tokenizer = task.how, task.ends.tokenizer
    prompts: list[tuple[Row, Prompt]] = []
    skipped, left_out, counts = Counter[str](), Counter[str](), Counter[str]()
    for row in rows:
        tokens = tokenise(row, tokenizer, task.ends.context - 1)
        if isinstance(tokens, Skipped):
            skipped[tokens.reason] += 1
        else:
            prompts.append((row, Prompt(row.id, tokens.ids[: tokens.response_start])))
    prompts.sort(key=lambda asked: (len(asked[1].ids), asked[1].key))
    kept: list[Written] = []
    dropped: list[tuple[Row, str]] = []
    sampling = Sampling(how.n, how.temperature, how.top_p, task.seed + task.round)
    answers = generator.ids([prompt for _row, prompt in prompts], sampling)
    for (row, prompt), drawn in zip(prompts, answers, strict=True):
        before = counts["generated_tokens"]
        for number, generated in enumerate(drawn):
            ids, truncated = task.ends.written(generated)
            counts["generated_tokens"] += len(ids)
            written, reason = _written(task, row, prompt, number, ids, truncated)
            if reason:
                left_out[reason] += 1
                dropped.append((written.row, reason))
            else:
                counts["tokens"] += len(ids)
                counts.update(written.row.verdicts.values())
                kept.append(written)
        on_answers(counts["generated_tokens"] - before)
    counts.update(prompts=len(prompts), rows=len(kept))
    if dropped:
        why = {"agent": [KIND] * len(dropped), "reason": [reason for _row, reason in dropped]}
        why["detail"] = [""] * len(dropped)
        task.work.put(f"{REJECTED}{name}.parquet", to_parquet([row for row, _reason in dropped], why))
    marks = {"student": task.student.identity(), "round": str(task.round)}
    columns = {column: [value] * len(kept) for column, value in marks.items()}
    task.work.put(f"{KEPT}{name}.parquet", written_parquet(kept, columns))
    told = {"counts": dict(counts), "left_out": dict(left_out), "skipped": dict(skipped)}
    task.work.put_json(DONE + name, told)


def _written(
    task: _Task, row: Row, prompt: Prompt, number: int, ids: list[int], truncated: bool
) -> tuple[Written, str | None]:
    """An answer as a row, and the reason why it is left out, where there is one."""
    tokenizer = task.ends.tokenizer
    inside = ids if truncated else ids[:-1]
    answer = task.ends.answer(ids).text
    marked = holds_marks(row, str(tokenizer.decode(inside, skip_special_tokens=False)), tokenizer)
    no_token = max(ids, default=0) >= len(tokenizer)  # an embedding is larger than its tokenizer
    reason = why_left_out(ids, answer, truncated=truncated, control=marked or no_token)
    verdicts = {} if reason else _verdict(task, row, answer)
    text = str(tokenizer.decode(inside, skip_special_tokens=True))
    marks = {"lineage": (*row.lineage, f"{KIND} {task.round}"), "scores": {}, "verdicts": verdicts}
    said = row.model_copy(update={"response": text, "tool_calls": (), **marks})
    key = hashlib.sha256(json.dumps([row.id, task.round, number, ids]).encode()).hexdigest()[:20]
    return Written(said, TokenisedRow(key, [*prompt.ids, *ids], len(prompt.ids))), reason


def holds_marks(row: Row, text: str, tokenizer: Any) -> bool:
    """Whether an answer holds a mark of the chat template; those of a call are none where tools may be called."""
    added = tokenizer.added_tokens_decoder.values() if row.uses_tools else ()
    calls = {str(token) for token in added if not token.special}
    return any(mark not in calls for mark in ChatFormat.of(tokenizer).control.findall(text))


def _verdict(task: _Task, row: Row, answer: str) -> dict[str, str]:
    correct = mark(row, answer, task.databases).correct
    return {} if correct is None else {EXECUTION: _RIGHT if correct else _WRONG}


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]))
