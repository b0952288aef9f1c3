"""What scoring variants side by side saves: the teacher asked once for all of them, against once for each.

    python -m tests.bench evaluate [--rows 48] [--students 4] [--layers 12] [--hidden 384] [--repeats 2]

Random weights and the demo's tokenizer: students, a teacher several times larger, and the teacher as a variant of its
own, on rows of about 200 tokens. Both ways run in turns in one process and give equal scores; the best turn of each
counts. Nothing is generated.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench._models import random_model, wordy_rows


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="evaluate")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--students", type=int, default=4)
    parser.add_argument("--layers", type=int, default=12, help="of the teacher; students have a sixth")
    parser.add_argument("--hidden", type=int, default=384, help="of the teacher; students have half")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args(arguments)
    from infra.services.embedded import embedded_storage
    from infra.store import storage

    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("DISTILFLOW_HOME", home)
        with embedded_storage():
            storage.ensure_bucket()
            return _figures(Path(home), options)


def _figures(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    from tasks.evaluate.heldout.scoring import load_model
    from tasks.evaluate.heldout.teachers import loaded_teacher
    from tasks.evaluate.heldout.together import Candidate, score_together
    from tasks.evaluate.settings import Evaluation
    from tasks.models import load_tokenizer
    from tasks.tokens.rows import TokenisedRow, tokenise

    how = Evaluation().following(10)
    source = random_model(folder, "teacher", **_sizes(options.layers, options.hidden))
    smaller = _sizes(max(options.layers // 6, 1), options.hidden // 2)
    students = [load_model(random_model(folder, f"student-{n}", **smaller)) for n in range(options.students)]
    teacher, tokenizer = load_model(source), load_tokenizer(source)
    tokenised = (tokenise(row, tokenizer, how.max_length) for row in wordy_rows(options.rows))
    rows = {row.row_id: row for row in tokenised if isinstance(row, TokenisedRow)}
    passes: list[int] = []
    teacher.register_forward_hook(lambda *_: passes.append(1))
    models = [*students, None]

    def turn(number: int, groups: Sequence[Sequence[Any]]) -> tuple[float, int, list[Any]]:
        passes.clear()
        started, scored = time.monotonic(), []
        for at, group in enumerate(groups):
            kept = [_kept(number, at, member) for member in range(len(group))]
            pairs = zip(group, kept, strict=True)
            candidates = [Candidate(model, rows, None, scores, lambda _rows: None) for model, scores in pairs]
            score_together(candidates, loaded_teacher(teacher, rows.values(), how.batch_rows, 10), how.batch_rows)
            scored += [scores.read() for scores in kept]
        return time.monotonic() - started, len(passes), scored

    taken: dict[str, list[float]] = {"alone": [], "together": []}
    asked = {}
    for number in range(options.repeats + 1):  # the first one warms up
        alone_s, asked["alone"], alone = turn(2 * number, [[model] for model in models])
        together_s, asked["together"], together = turn(2 * number + 1, [models])
        assert alone == together
        taken["alone"].append(alone_s)
        taken["together"].append(together_s)
        print(f"alone {alone_s:.2f} together {together_s:.2f}", file=sys.stderr, flush=True)
    before, after = (min(taken[way][1:]) for way in ("alone", "together"))
    count = len(models) * len(rows)
    return {
        "rows": len(rows),
        "variants": len(models),
        "parameters": {"teacher": teacher.num_parameters(), "student": students[0].num_parameters()},
        "teacher_batches": {"before": asked["alone"], "after": asked["together"]},
        "s_per_variant_and_row": {"before": round(before / count, 5), "after": round(after / count, 5)},
        "ratio": round(before / after, 3),
    }


def _sizes(layers: int, hidden: int) -> dict[str, int]:
    heads = max(hidden // 64, 1)
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }


def _kept(*numbers: int) -> Any:
    from infra.store.artifacts import Workspace
    from tasks.evaluate.heldout.together import KeptScores

    return KeptScores(Workspace("bench-evaluate", 1, {"numbers": list(numbers)}, {}))
