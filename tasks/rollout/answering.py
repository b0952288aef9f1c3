"""One engine that answers: in the program's own process where it is alone, else in one of several side by side.

python -m tasks.rollout.answering FOLDER

Any number of these work on one rollout, of one machine or of many: each claims a piece in storage before it answers
it, and ends when all pieces are there, whoever answered them. One piece's rows are in memory at a time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infra.processes import child
from infra.store.artifacts import ArtifactRef, Workspace
from infra.store.claims import Claims
from tasks.engines.generation import Ends, Generator, Prompt, Sampling, TransformersGenerator, vllm_generator
from tasks.engines.pieces import CLAIMS, Queue, Tell
from tasks.evaluate.heldout.execution import mark
from tasks.evaluate.heldout.scoring import load_model
from tasks.models import ModelSource, load_tokenizer
from tasks.rollout.choice import why_left_out
from tasks.rollout.settings import Rounds
from tasks.rows import KEPT, REJECTED, Row, from_parquet, to_parquet
from tasks.seeds.stage import open_databases
from tasks.tokens.rows import ChatFormat, Skipped, TokenisedRow, tokenise
from tasks.tokens.written import EXECUTION, KIND, RIGHT, WRONG, Written, written_parquet

DONE = "done/"  # a piece's counts, written after its answers


@dataclass(frozen=True)
class Asked:
    """What every engine is told, resolved. `how.tensor_parallel` is known; `sizes` has the prompts of each piece."""

    work: Workspace
    student: ModelSource
    how: Rounds
    round: int
    seed: int
    ends: Ends
    databases: dict[str, Any]
    agenda: Path
    sizes: Mapping[str, int]

    @staticmethod
    def of(spec: Mapping[str, Any]) -> Asked:
        student = ModelSource.model_validate(spec["model"])
        ends = Ends.of(student, load_tokenizer(student))
        return Asked(
            Workspace.from_description(spec["workspace"]),
            student,
            Rounds.model_validate(spec["rounds"]),
            spec["round"],
            spec["seed"],
            replace(ends, context=min(ends.context, spec["max_length"])),
            open_databases(ArtifactRef.model_validate(spec["seeds"])),
            Path(spec["agenda"]),
            spec["sizes"],
        )


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Answer beside others."""
    answer_pieces(Asked.of(spec), reporter, reporter.event)
    return {}


def rows_of(agenda: Path, name: str) -> Path:
    """The file of this machine that has the rows of a piece."""
    return agenda / f"{name.removeprefix(DONE)}.parquet"


def answer_pieces(task: Asked, reporter: child.Reporter, tell: Tell) -> None:
    """Answer what nobody else has, until all is stored; the engine starts once there is something for it to do.

    `tell` hears what `tasks.engines.progress` understands.
    """
    tokens = 0
    with Claims(task.work.uri + CLAIMS) as claims:
        queue = Queue(task.work, task.sizes, claims, tell)
        names = iter(queue)
        if (first := next(names, None)) is None:
            return
        with reporter.loading(task.how.engine):
            generator = _generator(task)
        tell("begun")
        with child.abort_if_a_child_dies(reporter.folder, "the engine that generates"):
            for name in itertools.chain([first], names):
                answered = itertools.count(1)

                def on_answers(generated: int, answered: Any = answered) -> None:
                    nonlocal tokens
                    tokens += generated
                    tell("working", tokens=tokens, partial=next(answered))

                answer(task, name, list(from_parquet(rows_of(task.agenda, name).read_bytes())), generator, on_answers)
        generator.close()


def _generator(task: Asked) -> Generator:
    how, ends = task.how, task.ends
    if how.engine == "transformers":
        return TransformersGenerator(load_model(task.student, how.dtype), ends, how.max_new_tokens, how.batch_rows)
    parallel = how.tensor_parallel
    return vllm_generator(task.student, ends, ends.context, how.max_new_tokens, how.dtype, parallel, how.gpu_memory)


def answer(task: Asked, name: str, rows: list[Row], generator: Generator, on_answers: Callable[[int], None]) -> None:
    """Put a piece's answers, those left out, and its counts; `on_answers` hears the tokens of each prompt's."""
    how, tokenizer, piece = task.how, task.ends.tokenizer, name.removeprefix(DONE)
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
        task.work.put(f"{REJECTED}{piece}.parquet", to_parquet([row for row, _reason in dropped], why))
    marks = {"student": task.student.identity(), "round": str(task.round)}
    columns = {column: [value] * len(kept) for column, value in marks.items()}
    task.work.put(f"{KEPT}{piece}.parquet", written_parquet(kept, columns))
    told = {"counts": dict(counts), "left_out": dict(left_out), "skipped": dict(skipped)}
    task.work.put_json(name, told)


def _written(
    task: Asked, row: Row, prompt: Prompt, number: int, ids: list[int], truncated: bool
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


def _verdict(task: Asked, row: Row, answer: str) -> dict[str, str]:
    correct = mark(row, answer, task.databases).correct
    return {} if correct is None else {EXECUTION: RIGHT if correct else WRONG}


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]))
