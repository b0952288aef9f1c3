"""Does distillation help a pretrained language model on answers that people wrote, where the top K hold little?

    python -m tests.bench real_text --model FOLDER --prepare FILE.gguf      # once: a model's folder out of a GGUF file
    python -m tests.bench real_text --model FOLDER --rows FILE [--home FOLDER] [--every 2] [--lora 16] …

The teacher is the model (with `--teacher-steps`, fine-tuned on the training rows first), the student every second of
its layers. A row of the file is trained on or held out. For each seed the product's own pipeline runs once for each K
and tail: fine-tuning, then KD and its control for equal steps; with the last of them, an on-policy round beside KD
continued for as long. The teacher scores once, at the largest K. All stages are found again in `--home` by their
fingerprints, so the same command continues what was interrupted.

On stderr, each stage and arm as it is done, and the table. JSON: held-out cross-entropy, KL to the teacher over the
whole vocabulary and over its largest K (nats a token) and top-1 agreement by arm, with 95 % intervals over the rows,
and by seed; how much lower than the control's (a round's: than continued KD's) the KL is on the same rows; KL on the
student's own answers.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TypeVar, cast

from infra.errors import ConfigurationError
from infra.stage import Stage, Unseen, make
from infra.store.artifacts import ArtifactRef, Workspace

R = TypeVar("R")
HELDOUT_SHARE = 0.25
RECIPES = [(k, tail) for k in (10, 50) for tail in ("renormalise", "bucket")]
TRAINED = ("sft", "sft_control", "kd", "kd_continued", "round_1")
OWN_TEXT = ("kd", "kd_continued", "round_1")


def run(arguments: list[str]) -> dict[str, Any]:
    options = _parser().parse_args(arguments)
    if options.prepare:
        from tests.bench._real_model import prepare

        prepare(options.prepare, options.model)
        return {"model": str(options.model)}
    if not options.rows:
        raise SystemExit("real_text: --rows FILE, with human-written answers, is needed")
    os.environ |= {"DISTILFLOW_HOME": str(options.home.absolute())} if options.home else {}
    from infra.services.embedded import embedded_storage
    from infra.store import storage

    with embedded_storage():
        storage.ensure_bucket()
        return _Bench(options).table()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="real_text")
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--prepare", type=Path, help="make that folder out of this GGUF file, and no more")
    parser.add_argument("--rows", type=Path, help="rows with answers, in any format that seeds may have")
    parser.add_argument("--home", type=Path, help="where artifacts lie (default: DISTILFLOW_HOME)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--every", type=float, default=2, help="layer that the student keeps: every second, third …")
    parser.add_argument("--rows-train", type=int, default=128)
    parser.add_argument("--rows-heldout", type=int, default=40)
    parser.add_argument("--max-length", type=int, default=256, help="in tokens; longer rows are left out")
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--teacher-steps", type=int, default=30, help="of fine-tuning the teacher (0: as it is)")
    parser.add_argument("--sft-steps", type=int, default=30, help="of fine-tuning before KD")
    parser.add_argument("--steps", type=int, default=30, help="of KD, and of its control")
    parser.add_argument("--round-steps", type=int, default=15, help="of a round, and of KD continued (0: no round)")
    parser.add_argument("--teacher-rate", type=float, default=1e-5)
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate of the student")
    parser.add_argument("--round-rate", type=float, default=5e-5)
    parser.add_argument("--kd-weight", type=float, default=0.5)
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters (0: all weights are trained)")
    parser.add_argument(
        "--recipes", type=_k_and_tail, nargs="+", default=RECIPES, help="K:TAIL, of which the last goes on"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of the student's own answers")
    return parser


def _k_and_tail(text: str) -> tuple[int, str]:
    """K and tail of `50:bucket`."""
    k, _, tail = text.partition(":")
    return int(k), tail


class _Bench:
    def __init__(self, options: argparse.Namespace):
        from tasks.models import ModelSource
        from tests.bench._real_model import cut, kept_layers, shape_of

        self.options = options
        self.shape = shape_of(options.model)
        self.kept = kept_layers(self.shape["num_hidden_layers"], options.every)
        place = options.model.parent / f"{options.model.name}-every-{options.every:g}"
        self.whole = ModelSource(name="model", path=str(options.model.absolute()))
        self.student = ModelSource(name="student", path=str(cut(options.model, place, self.kept).absolute()))
        self.widest = max(k for k, _tail in options.recipes)

    def table(self) -> dict[str, Any]:
        """All arms of all seeds, each told as it is done."""
        from flows.pipeline import pipeline
        from tasks.models import ModelSource
        from tests.bench._real_table import Arms, markdown

        arms = Arms()
        for seed in self.options.seeds:
            models = {"base": self.student, "teacher": self._teacher}
            for k, tail in self.options.recipes:
                rounds = int((k, tail) == self.options.recipes[-1] and self.options.round_steps > 0)
                recipe = self._recipe(seed, k, tail, rounds)
                results = pipeline(self._run, recipe, self.student, self._teacher)
                trained = {name: results.stages[name] for name in TRAINED if name in results.stages}
                names = {name: f"kd k={k} {tail}" if name == "kd" else name for name in trained}
                models |= {names[name]: ModelSource(name=name, artifact=ref) for name, ref in trained.items()}
            self._evaluate(arms, seed, recipe, results.stages["seeds"], models)
            for name in trained if rounds else ():
                if name in OWN_TEXT:
                    try:
                        own = self._own_text(recipe, results.stages["seeds"], models[names[name]])
                    except ConfigurationError as error:  # a student that never ends writes no text
                        _tell({"arm": names[name], "seed": seed, "own_text": str(error)})
                    else:
                        _tell(arms.add_own_text(names[name], seed, own))
        found = {
            "student": {**self.shape, "layers_kept": self.kept},
            "settings": {name: value for name, value in vars(self.options).items() if not isinstance(value, Path)},
            "topk_mass": _mass(results.stages["logits"], sorted({k for k, _tail in self.options.recipes})),
            "rows": results.stages["augment"].counts["rows"],
            "supervised_tokens": results.stages["logits"].counts["tokens"],
            **arms.summary(continued="kd_continued", control="sft_control"),
        }
        print(markdown(found), file=sys.stderr, flush=True)
        return found

    def _recipe(self, seed: int, k: int, tail: Any, rounds: int) -> Any:
        from flows.params import Settings
        from flows.recipe import Recipe
        from tasks.augment.settings import Augmentation
        from tasks.evaluate.settings import Evaluation
        from tasks.logits.settings import Scoring
        from tasks.rollout.settings import Rounds
        from tasks.seeds.settings import Reading
        from tasks.train.settings import Distillation, Lora, TrainingRun

        asked = self.options
        kd = Distillation(
            tail=tail,
            kd_weight=asked.kd_weight,
            learning_rate=asked.rate,
            max_steps=asked.steps,
            global_batch=asked.batch,
            max_length=asked.max_length,
            warmup_share=0.1,
            lora=Lora(rank=asked.lora, alpha=2 * asked.lora) if asked.lora else None,
        )
        settings = Settings(
            augmentation=Augmentation(enabled=False),
            sft=kd.training().model_copy(update={"max_steps": asked.sft_steps}),
            kd=kd,
            scoring=Scoring(engine="transformers", k=self.widest, max_length=asked.max_length),
            evaluation=Evaluation(
                engine="transformers",
                max_rows=asked.rows_heldout,
                max_new_tokens=1,  # nobody reads the answers
                max_length=asked.max_length,
                top_k=self.widest,
                batch_rows=8,
            ),
            run=TrainingRun(processes=1, checkpoint_every_s=1200),  # of gigabytes; an arm takes minutes
            data=Reading(max_seeds=asked.rows_train),
            rounds=Rounds(
                rounds=rounds,
                steps=asked.round_steps or 1,
                learning_rate=asked.round_rate,
                least_agreement=0,  # a round is measured even where it promises little
                engine="transformers",
                max_new_tokens=asked.max_new_tokens,
            ),
        )
        names = {"student": "student", "teacher": "teacher", "seeds": str(asked.rows)}
        return Recipe(**names, k=k, heldout_share=HELDOUT_SHARE, seed=seed, settings=settings)

    @functools.cached_property
    def _teacher(self) -> Any:
        """The whole model, fine-tuned on the training rows where that is asked for; one for all seeds."""
        from flows.pipeline import load_seeds
        from tasks.augment.stage import Augment
        from tasks.models import ModelSource
        from tasks.train.stage import Train

        asked = self.options
        if not asked.teacher_steps:
            return self.whole
        recipe = self._recipe(0, self.widest, "bucket", 0)
        how = recipe.settings
        rows = self._run(
            Augment(
                seeds=self._run(load_seeds(recipe)),
                agent_model=recipe.agent_model,
                options=how.augmentation,
                near_heldout=how.data.near_heldout,
            )
        )
        steps = {"max_steps": asked.teacher_steps, "learning_rate": asked.teacher_rate}
        training = how.sft.model_copy(update=steps)
        tuned = Train(name="sft", model=self.whole, data=rows, training=training, run=how.run, seed=0)
        return ModelSource(name="teacher", artifact=self._run(tuned))

    def _run(self, stage: Stage[R]) -> R:
        """What the pipeline's stages are given to; evaluation waits for all arms of a seed, to score them together."""
        from tasks.evaluate.stage import Evaluate

        return cast(R, {}) if isinstance(stage, Evaluate) else stage.result(_made(stage))

    def _evaluate(self, arms: Any, seed: int, recipe: Any, seeds: ArtifactRef, models: dict[str, Any]) -> None:
        from tasks.evaluate.stage import Evaluate

        how = recipe.settings.evaluation
        for arm, ref in _made(Evaluate(models=models, teacher=self._teacher, seeds=seeds, evaluation=how)).items():
            if told := arms.add(arm, seed, ref):
                _tell(told)

    def _own_text(self, recipe: Any, seeds: ArtifactRef, student: Any) -> Any:
        """KL to the teacher, over the whole vocabulary, of what a student answers to held-out questions: a PerRow."""
        from tasks.evaluate.heldout.scoring import load_model
        from tasks.evaluate.heldout.teachers import loaded_teacher
        from tasks.evaluate.heldout.together import Candidate, KeptScores, score_together
        from tasks.rollout.stage import Rollout
        from tasks.stats.intervals import PerRow
        from tasks.tokens.written import read_written

        questions = _questions(seeds, self.options.rows_heldout)
        how = recipe.settings.rounds
        rollout = Rollout(
            model=student,
            rows=questions,
            seeds=seeds,
            rounds=how,
            round=1,
            max_length=2 * self.options.max_length,
            seed=0,
        )
        answers = self._run(rollout)
        rows = {one.tokens.row_id: one.tokens for one in read_written(answers)}
        by = {"student": student.identity(), "teacher": self._teacher.identity()}
        kept = KeptScores(Workspace("own_text", 1, by, {"answers": answers}))
        if rows.keys() - kept.row_ids:
            views = loaded_teacher(load_model(self._teacher), rows.values(), 8, self.widest)
            score_together([Candidate(load_model(student), rows, None, kept, lambda _rows: None)], views, 8)
        scores = kept.read().values()
        return PerRow.of([score.kl_to_teacher for score in scores], [score.kl_tokens for score in scores])


def _made(stage: Stage[Any]) -> dict[str, ArtifactRef]:
    """What comes of a stage, found or made here; told where it was made."""
    began = time.monotonic()
    made = make(stage, Unseen())
    if made.new:
        _tell({stage.title: stage.show(made, Unseen()), "seconds": round(time.monotonic() - began)})
    return made.refs


def _mass(scores: ArtifactRef, ks: list[int]) -> dict[int, float]:
    """Mean probability that the teacher's top K hold, of the K that there are."""
    from tasks.logits.coverage import CoverageCounter
    from tasks.logits.store.reader import TopKReader

    found = {}
    for k in ks:
        counter = CoverageCounter(k)
        for row in TopKReader(scores, k):
            counter.add(row.logprobs_RK, "all")
        found[k] = counter.summary()["mean"]
    return found


def _questions(seeds: ArtifactRef, at_most: int) -> ArtifactRef:
    """Held-out rows as rows to be asked."""
    from tasks.rows import KEPT, heldout_rows, to_parquet

    work = Workspace("augment", 1, {"heldout": at_most}, {"seeds": seeds})
    rows = heldout_rows(seeds, at_most)
    if found := work.find():
        return found
    work.put(f"{KEPT}00000.parquet", to_parquet(rows))
    return work.publish((KEPT,), {"rows": len(rows)}, {})


def _tell(what: dict[str, Any]) -> None:
    print(json.dumps(what), file=sys.stderr, flush=True)
