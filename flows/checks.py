"""What can be known to be wrong with a run before anything is spent: sentences, for a refusal or for a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from flows.recipe import Recipe
from infra.errors import ConfigurationError, TransientError
from infra.store.artifacts import ArtifactRef
from tasks.augment.naming import categories_of, is_named
from tasks.engines.quantised import check_device, check_transformers
from tasks.engines.server import connect
from tasks.evaluate.benchmarks import artifacts, harness
from tasks.evaluate.settings import Evaluation
from tasks.evaluate.variants import variants
from tasks.logits.api.settings import MOST_ALTERNATIVES
from tasks.logits.parallel import check_spread
from tasks.logits.settings import Scoring
from tasks.models import ModelSource
from tasks.quantise.checks import check_formats
from tasks.rollout.settings import Rounds
from tasks.rows import TRAIN, WITH_TOOLS, read_rows
from tasks.tokens.alignment import check_same_template
from tasks.tokens.chat import takes_system_turns
from tasks.tokens.rows import tokenizer_digests
from tasks.tokens.tools import knows_tools
from tasks.tokens.written import other_tokens
from tasks.train.model.families import check_trainable
from tasks.train.settings import Distillation

T = TypeVar("T")
_NO_ROUNDS, _SCORING = Rounds(), Scoring()
_NOT_LOADED = Evaluation(teacher="topk")  # of teachers that evaluation does not know
_SHOWN = 40


def tried(problems: list[str], do: Callable[[], T]) -> T | None:
    """What it returns; None, and a problem more, where it refuses."""
    try:
        return do()
    except ConfigurationError as error:
        problems.append(str(error))
        return None


def check_run(
    recipe: Recipe,
    base: ModelSource | None,
    teachers: Mapping[str, ModelSource | None],
    *,
    on_gpu: bool | None,
    here: bool,
) -> tuple[list[str], list[str]]:
    """What a run of these models would fail at, perhaps hours later, and what it will leave out for their sake.

    Models that cannot be reached are None: nothing is said of them. What engines can do is asked where it is known
    whether they are `on_gpu`; whether packages and servers have what they need where the run is `here`.
    """
    how, remarks = recipe.settings, list[str]()
    by_api = how.scoring.engine == "api"
    problems = check_api_teacher(recipe) if by_api else []
    if base is None:
        return problems, remarks
    if by_api:
        tried(problems, lambda: check_trainable(base.name, base.json_file("config.json")))
        tried(problems, base.check_weights)
    for name, scorer in teachers.items():
        if scorer is None:
            continue
        is_first = name == recipe.teacher
        found = [check_models(base, scorer, how.kd, how.rounds)]
        if on_gpu is not None:
            compared = how.evaluation if is_first else _NOT_LOADED
            found.append((check_engines(scorer, compared, how.scoring, on_gpu=on_gpu, here=here), []))
        if here and is_first:
            found.append(check_server(scorer, recipe))
        for wrong, said in found:
            problems, remarks = problems + wrong, remarks + said
    problems += check_quantised(recipe, base, here=here)
    return list(dict.fromkeys(problems)), list(dict.fromkeys(remarks))


def check_benchmarks(recipe: Recipe) -> None:
    """Refuse benchmarks that could not run, hours before their turn; raises ConfigurationError."""
    options, labels = recipe.settings.benchmarks, recipe.settings.judging.labels
    if not (options.asked or labels):
        return
    artifacts.preflight(options, recipe.judge_model, labels, variants(recipe.settings.rounds.rounds))
    if options.harness:
        harness.preflight(options)


def check_models(
    base: ModelSource, scorer: ModelSource, kd: Distillation, rounds: Rounds = _NO_ROUNDS
) -> tuple[list[str], list[str]]:
    """What the models' files tell will fail, and what will be left out for their sake: sentences, each once."""
    problems: list[str] = []
    remarks: list[str] = []
    tried(problems, lambda: check_trainable(base.name, base.json_file("config.json")))
    remarks += tried(problems, lambda: _check_tokenizers(base, scorer, kd, rounds)) or ()
    if rounds.rounds:
        tried(problems, lambda: rounds.check_batch(kd.global_batch))
    for role, model in (("student", base), ("teacher", scorer)):
        tried(problems, model.check_weights)
        remarks += tried(problems, partial(_limits, role, model, kd)) or ()
    return list(dict.fromkeys(problems)), remarks


def check_api_teacher(recipe: Recipe) -> list[str]:
    """What cannot be had of a teacher that only tells the log-probs of what it writes itself: sentences."""
    how = recipe.settings
    problems: list[str] = []
    if (k := how.scoring.stored(recipe.k)) > MOST_ALTERNATIVES:
        problems.append(
            f"k={k} with scoring.engine=api: providers tell at most {MOST_ALTERNATIVES} alternatives a token, "
            f"some fewer: lower k"
        )
    only = "needs a teacher that scores given texts, which scoring.engine=api does not: "
    if how.rounds.rounds:
        problems.append(f"rounds.rounds {only}set it to 0")
    if how.fit.chooses:
        problems.append(f"fit.keep below 1 {only}leave it out")
    if how.evaluation.teacher == "topk":
        problems.append(f"evaluation.teacher=topk {only}leave it out, variants are compared without a teacher")
    if recipe.routes:
        problems.append(f"teachers {only}leave it out")
    return problems


def check_engines(
    teacher: ModelSource, evaluation: Evaluation, scoring: Scoring = _SCORING, *, on_gpu: bool, here: bool
) -> list[str]:
    """Why the engines could not run the teacher: one whose weights are quantised needs GPUs, and packages `here`.

    And what vLLM cannot spread as `scoring` says.
    """
    problems: list[str] = []
    try:
        config = teacher.json_file("config.json")
    except ConfigurationError:
        return []  # which was said of the model already
    tried(problems, lambda: check_device(teacher.name, config, on_gpu=on_gpu))
    tried(problems, lambda: check_spread(scoring, teacher, on_gpu=on_gpu))
    loads = evaluation.teacher == "full" or evaluation.engine == "transformers"
    if here and loads and not problems:
        tried(problems, lambda: check_transformers(teacher.name, config, "evaluation", "set evaluation.teacher=topk"))
    return problems


def check_server(teacher: ModelSource, recipe: Recipe) -> tuple[list[str], list[str]]:
    """Why the server that is to score could not do it for this teacher, and what needs the teacher here all the same.

    A short prompt shows it; where no server is to score there is nothing to say.
    """
    scoring, evaluation = recipe.settings.scoring, recipe.settings.evaluation
    if scoring.server is None:
        return [], []
    if recipe.routes:
        return ["scoring.engine=server scores with one teacher, and teachers names more: leave one of the two out"], []
    asked = [(scoring.stored(recipe.k), scoring.max_length)]
    asked += [(evaluation.kl_tokens, evaluation.max_length)] if evaluation.teacher == "topk" else []
    k, longest = (max(numbers) for numbers in zip(*asked, strict=True))
    try:
        longest = min(longest, teacher.context() - 1)
        connect(scoring.server, scoring.server_model, teacher, k, longest, patient=False).server.close()
    except (ConfigurationError, TransientError) as error:
        return [str(error)], []
    remark = f"the server scores with {teacher.name}, and evaluation loads it here to have its own answers"
    if evaluation.teacher == "full":
        remark += ", and once more to compare with (evaluation.teacher=topk compares with the server's scores)"
    return [], [remark]


def check_quantised(recipe: Recipe, base: ModelSource, *, here: bool) -> list[str]:
    """Why a student of this base could not be quantised as asked, and `here` if that is where it is done."""
    how, compared = recipe.settings.quantise, variants(recipe.settings.rounds.rounds)
    problems: list[str] = []
    if how.formats and how.student not in compared:
        problems.append(f"quantise.student={how.student} is not trained in this run: it compares {', '.join(compared)}")
    tried(problems, lambda: check_formats(base, how, here=here))
    return problems


def check_tools(seeds: ArtifactRef, base: ModelSource, *scorers: ModelSource) -> tuple[list[str], list[str]]:
    """What seeds that use tools come to with templates that know none: sentences that stop the run, and remarks."""
    problems: list[str] = []
    remarks: list[str] = []
    count, total = seeds.counts.get(WITH_TOOLS, 0), seeds.counts["seeds"]
    for role, model in (("student", base), *(("teacher", scorer) for scorer in scorers)) if count else ():
        if knows_tools(model):
            continue
        template = f"the chat template of {role} {model.name} knows no tools"
        if count == total:
            problems.append(f"{template}, and every seed uses some: choose a model made for tools, or other seeds")
        else:
            remarks.append(f"{template}: the {count:,} of {total:,} seeds that use some are left out")
    return problems, remarks


def check_routes(seeds: ArtifactRef, recipe: Recipe) -> list[str]:
    """Of task categories that have a teacher of their own and that no row can have: a sentence."""
    routed = {category for categories in recipe.routes.values() for category in categories}
    if not routed:
        return []
    options = recipe.settings.augmentation
    held = Counter(row.task_category for row in read_rows(seeds, TRAIN))
    named = held.keys() | (categories_of(options) if is_named(seeds, options) else set())
    if not (unknown := sorted(routed - named)):
        return []
    return [
        f"teachers has a teacher for {', '.join(map(repr, unknown))}, and no row has that task category: "
        f"they have {', '.join(map(repr, sorted(named)[:_SHOWN]))}{' …' if len(named) > _SHOWN else ''}"
    ]


def _check_tokenizers(base: ModelSource, scorer: ModelSource, kd: Distillation, rounds: Rounds) -> list[str]:
    digests = tokenizer_digests(scorer)
    if digests["vocabulary"] == tokenizer_digests(base)["vocabulary"]:
        check_same_template(digests, base)
        return []
    if rounds.rounds:
        raise ConfigurationError(other_tokens(scorer))
    return [
        f"{base.name} and {scorer.name} have different tokenizers: the teacher's distributions go where both cut "
        f"the text alike, and training refuses less than kd.min_alignment = {kd.min_alignment:g}"
    ]


def _limits(role: str, model: ModelSource, kd: Distillation) -> list[str]:
    """Which rows this model cannot take."""
    remarks = []
    if model.context() < kd.max_length:
        remarks.append(
            f"{role} {model.name} was made for texts of {model.context():,} tokens: longer rows are left out "
            f"(kd.max_length is {kd.max_length:,})"
        )
    if not takes_system_turns(model):
        remarks.append(f"the chat template of {role} {model.name} takes no system message: rows with one are left out")
    return remarks
