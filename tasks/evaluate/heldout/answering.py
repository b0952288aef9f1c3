"""Variants answer held-out rows, by one engine in the program's own process or by several side by side.

python -m tasks.evaluate.heldout.answering FOLDER

A variant's rows are answered in pieces, each kept as it is done; several engines claim them in storage. An engine has
one model at a time: it does what it can get of a variant before it loads another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import itertools
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.devices import Gpus
from infra.processes import child
from infra.processes.shares import shares
from infra.store import storage
from infra.store.artifacts import Workspace
from infra.store.claims import Claims
from tasks.engines.generation import Ends, Generator, Prompt, Sampling, TransformersGenerator, vllm_generator
from tasks.engines.pieces import CLAIMS, Queue, Tell, work_side_by_side
from tasks.engines.progress import Progress
from tasks.evaluate.heldout.scoring import load_model
from tasks.evaluate.parallel import generation_engines, generation_parallel
from tasks.evaluate.settings import Evaluation
from tasks.logits.agenda import rows_of, write_agenda
from tasks.logits.shards import Shard
from tasks.models import ModelSource, load_tokenizer
from tasks.tokens.rows import TokenisedRow

ANSWERING = "tasks.evaluate.heldout.answering"
_FOLDER = "answers/"  # beside a variant's scores, until both are its artifact
_ROWS_A_PIECE = 256  # that vLLM answers at once


class KeptAnswers:
    """The answers to a variant's rows, in pieces."""

    def __init__(self, work: Workspace, rows: Sequence[TokenisedRow], batch_rows: int):
        size = max(1, _ROWS_A_PIECE // batch_rows) * batch_rows  # the reference's batches are as those of one piece
        starts = range(0, len(rows), size)
        self.pieces = [Shard(f"{_FOLDER}{at:07}-{len(rows[at : at + size])}", rows[at : at + size]) for at in starts]
        self._work = work

    def missing(self) -> list[Shard]:
        return [piece for piece in self.pieces if not self._work.has(piece.name)]

    def read(self) -> tuple[dict[str, Any], float, float | None]:
        """What was answered to each row id, the seconds of all engines together, and tokens/s of one once it is up."""
        kept = [self._work.get_json(piece.name) for piece in self.pieces]
        rows = {row_id: row for one in kept for row_id, row in one["rows"].items()}
        # a piece of before these were measured has none
        seconds, tokens = (sum(one.get(name, 0) for one in kept) for name in ("answering_s", "tokens"))
        return rows, sum(one["seconds"] for one in kept), tokens / seconds if seconds else None

    def delete(self) -> None:
        ours = (_FOLDER, CLAIMS + _FOLDER)
        storage.delete_all(self._work.uri, [name for name in storage.keys(self._work.uri) if name.startswith(ours)])


@dataclass(frozen=True)
class Answering:
    """What an engine is told of a variant: its prompts lie in `agenda`; the longest has so many tokens."""

    name: str
    source: ModelSource
    work: Workspace
    agenda: Path
    longest: int
    parallel: int
    sizes: Mapping[str, int]

    def spec(self) -> dict[str, Any]:
        """The same as JSON."""
        described = {"source": self.source.model_dump(), "work": self.work.description(), "agenda": str(self.agenda)}
        return {name: getattr(self, name) for name in ("name", "longest", "parallel", "sizes")} | described

    @staticmethod
    def of(spec: Mapping[str, Any]) -> Answering:
        source, work = ModelSource.model_validate(spec["source"]), Workspace.from_description(spec["work"])
        return Answering(**{**spec, "source": source, "work": work, "agenda": Path(spec["agenda"])})


def answer_all(
    variants: Sequence[tuple[str, ModelSource, Workspace, KeptAnswers]],
    settings: Evaluation,
    gpus: Gpus | None,
    reporter: child.Reporter,
    done: int,
    total: int,
) -> int:
    """Have all that is missing answered; how much of the total is done then.

    Variants that are spread over as many GPUs are answered together, by as many engines as fit.
    """
    asked: dict[int, list[Answering]] = {}
    for number, (name, source, work, kept) in enumerate(variants):
        agenda, pieces = reporter.folder / f"agenda-{number}", kept.missing()
        write_agenda(agenda, pieces)
        longest = max(row.response_start for piece in kept.pieces for row in piece.rows)
        length = longest + settings.max_new_tokens
        parallel = generation_parallel(settings, source, length, gpus, reporter.note)
        sizes = {piece.name: len(piece.rows) for piece in pieces}
        asked.setdefault(parallel, []).append(Answering(name, source, work, agenda, longest, parallel, sizes))
    for parallel, some in asked.items():
        engines = min(generation_engines(settings, parallel, gpus), sum(len(one.sizes) for one in some))
        progress = Progress(reporter, engines, done, total)
        if engines > 1:
            for one in some:
                one.source.fetch()  # once, before all engines
            spec = {"evaluation": settings.model_dump(), "variants": [one.spec() for one in some]}
            work_side_by_side("evaluate-engine", ANSWERING, spec, shares(engines, parallel), progress)
        else:
            answer(some, settings, reporter, functools.partial(progress.hear, 0))
        done += sum(sum(one.sizes.values()) for one in some)
    return done


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Answer beside others, each of whom begins with another variant."""
    asked = [Answering.of(one) for one in spec["variants"]]
    answer(random.sample(asked, len(asked)), Evaluation.model_validate(spec["evaluation"]), reporter, reporter.event)
    return {}


def answer(asked: Sequence[Answering], settings: Evaluation, reporter: child.Reporter, tell: Tell) -> None:
    """Answer what nobody else has, then what others leave; `tell` hears what `tasks.engines.progress` understands."""
    meter = _Meter(tell)
    with contextlib.ExitStack() as held:
        queues = []
        for one in asked:
            claims = held.enter_context(Claims(one.work.uri + CLAIMS))
            queues.append((one, Queue(one.work, one.sizes, claims, tell)))
        for one, queue in queues:
            _answer_variant(one, queue.free(), settings, reporter, meter)
        for one, queue in queues:
            _answer_variant(one, iter(queue), settings, reporter, meter)


class _Meter:
    """Tells how many tokens an engine has written, and how many rows it has answered of the piece that it is at."""

    def __init__(self, tell: Tell):
        self.tell = tell
        self.tokens = 0

    def count(self, tokens: int, answered: int, variant: str) -> None:
        self.tokens += tokens
        self.tell("working", tokens=self.tokens, partial=answered, variant=variant)


def _answer_variant(
    asked: Answering, names: Iterator[str], settings: Evaluation, reporter: child.Reporter, meter: _Meter
) -> None:
    """The engine starts with the first piece that there is."""
    if (first := next(names, None)) is None:
        return
    started = time.monotonic()
    with reporter.loading(f"{settings.engine} with {asked.name}"):
        generator = _generator(asked, settings)
    meter.tell("begun")
    begun = time.monotonic()
    with child.abort_if_a_child_dies(reporter.folder, "the engine that generates"):
        for name in itertools.chain([first], names):
            rows = rows_of(asked.agenda, name)
            prompts = [Prompt(row.row_id, row.ids[: row.response_start]) for row in rows]
            before = meter.tokens
            kept = _answers(prompts, generator, settings, functools.partial(meter.count, variant=asked.name))
            now = time.monotonic()
            speed = {"tokens": meter.tokens - before, "answering_s": now - begun}
            asked.work.put_json(name, {"rows": kept, "seconds": now - started, **speed})
            started = begun = now
    generator.close()
    del generator
    gc.collect()


def _answers(prompts: list[Prompt], generator: Generator, settings: Evaluation, count: Any) -> dict[str, Any]:
    """A greedy answer to each prompt, and samples where they are asked for."""
    kept: dict[str, dict[str, Any]] = {}
    for prompt, [greedy] in zip(prompts, generator.answers(prompts, None), strict=True):
        kept[prompt.key] = {"greedy": dataclasses.asdict(greedy), "samples": []}
        count(greedy.tokens, len(kept))
    if settings.samples:
        sampling = Sampling(settings.samples, settings.temperature, settings.top_p, settings.seed)
        for prompt, answers in zip(prompts, generator.answers(prompts, sampling), strict=True):
            kept[prompt.key]["samples"] = [one.text for one in answers]
            count(sum(one.tokens for one in answers), len(kept))
    return kept


def _generator(asked: Answering, settings: Evaluation) -> Generator:
    ends, new = Ends.of(asked.source, load_tokenizer(asked.source)), settings.max_new_tokens
    if settings.engine == "transformers":
        return TransformersGenerator(load_model(asked.source, settings.dtype), ends, new, settings.batch_rows)
    longest, room = asked.longest + new, settings.gpu_memory
    return vllm_generator(asked.source, ends, longest, new, settings.dtype, asked.parallel, room)


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]))
