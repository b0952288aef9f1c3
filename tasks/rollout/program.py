"""The rollout program: chooses the prompts, has the missing pieces of them answered by one engine or several, sums up.

python -m tasks.rollout.program FOLDER

Any number of these work on one rollout side by side, and each may run several engines: all claim the pieces that they
answer (`tasks.rollout.answering`). One engine runs in this process; several in processes of their own.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from infra import devices
from infra.errors import ConfigurationError
from infra.processes import child
from infra.processes.shares import shares
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.engines.pieces import work_side_by_side
from tasks.engines.progress import Progress
from tasks.models import ModelSource
from tasks.rollout.answering import DONE, Asked, answer_pieces, rows_of
from tasks.rollout.choice import draw, limit
from tasks.rollout.parallel import rollout_engines, rollout_parallel
from tasks.rollout.settings import Rounds
from tasks.rows import KEPT, Row, read_rows, to_parquet
from tasks.tokens.rows import tokenizer_digests
from tasks.tokens.written import RIGHT, WRONG

ANSWERING = "tasks.rollout.answering"
PROMPTS_A_PIECE = 2048


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Answer all prompts; returns counts and facts of the whole."""
    work = Workspace.from_description(spec["workspace"])
    student, how = ModelSource.model_validate(spec["model"]), Rounds.model_validate(spec["rounds"])
    agenda = reporter.folder / "agenda"
    agenda.mkdir()
    missing: dict[str, int] = {}
    names: list[str] = []
    total = 0
    for number, rows in enumerate(_pieces(spec, how.prompts)):
        name = f"{DONE}{number:05}"
        names.append(name)
        total += len(rows)
        if not work.has(name):
            missing[name] = len(rows)
            rows_of(agenda, name).write_bytes(to_parquet(rows))
    engines = 0
    if missing:
        longest, gpus = min(student.context(), spec["max_length"]), devices.here()
        parallel = rollout_parallel(how, student, longest, gpus, reporter.note)
        engines = min(rollout_engines(how, parallel, gpus), len(missing))
        how = how.model_copy(update={"tensor_parallel": parallel})
    progress = Progress(reporter, engines, total - sum(missing.values()), total)
    told = spec | {"rounds": how.model_dump(), "agenda": str(agenda), "sizes": missing}
    if engines > 1:
        student.fetch()  # once, before all of them
        work_side_by_side("rollout-engine", ANSWERING, told, shares(engines, how.tensor_parallel), progress)
    elif missing:
        answer_pieces(Asked.of(told), reporter, functools.partial(progress.hear, 0))
    return _summary(work, student, how, engines, names)


def _pieces(spec: dict[str, Any], prompts: int | None) -> Iterator[list[Row]]:
    """The rows that are asked, in the order of the artifact."""
    given = ArtifactRef.model_validate(spec["rows"])
    of_round = spec["seed"], spec["round"]
    draws = (draw(row.id, *of_round) for row in read_rows(given, KEPT)) if prompts else ()
    most = limit(draws, prompts)
    asked = (row for row in read_rows(given, KEPT) if draw(row.id, *of_round) <= most)
    while piece := list(islice(asked, PROMPTS_A_PIECE)):
        yield piece


def _summary(work: Workspace, student: ModelSource, how: Rounds, engines: int, names: list[str]) -> dict[str, Any]:
    """All pieces together; ConfigurationError where no answer can be used."""
    counts, left_out, skipped = Counter[str](), Counter[str](), Counter[str]()
    for name in names:
        of_piece = work.get_json(name)
        counts += Counter(of_piece["counts"])
        left_out += Counter(of_piece["left_out"])
        skipped += Counter(of_piece["skipped"])
    if not counts["rows"]:
        raise ConfigurationError(f"no answer of the student can be used: {dict(left_out + skipped)}")
    named = ("prompts", "rows", "tokens", "generated_tokens", RIGHT, WRONG)
    return {
        "counts": {**{name: counts[name] for name in named}, "rejected": left_out.total()},
        "facts": {
            "left_out": dict(left_out),
            "skipped": dict(skipped),
            "tokenizer": tokenizer_digests(student),
            "engine": how.engine,
            "engines": engines,
        },
    }


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]))
