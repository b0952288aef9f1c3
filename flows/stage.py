"""One stage alone: what a GPU pool runs for a `distill` run elsewhere."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, cast, get_type_hints

from prefect import flow
from pydantic import TypeAdapter, ValidationError

from infra.errors import ConfigurationError
from infra.orchestration import names
from infra.orchestration.dispatch import Dispatched, run_there
from infra.orchestration.remote_run import answers
from infra.orchestration.stage_task import stage_task
from infra.orchestration.view import stage_view
from infra.store.artifacts import ArtifactRef
from tasks.evaluate import stage as evaluation_stage
from tasks.evaluate.benchmarks import harness
from tasks.evaluate.benchmarks import stage as answers_stage
from tasks.evaluate.benchmarks.task import benchmark_answers, lm_eval
from tasks.evaluate.task import evaluate
from tasks.logits import stage as logits_stage
from tasks.logits.task import score_logits
from tasks.train import stage as training_stage
from tasks.train.task import train

P = ParamSpec("P")
R = TypeVar("R")
STAGES: dict[str, Any] = {
    "train": train,
    "logits": score_logits,
    "evaluate": evaluate,
    "benchmark_answers": benchmark_answers,
    "lm_eval": lm_eval,
}
_IS_FINISHED: dict[str, Callable[..., bool]] = {
    "train": lambda name, model, data, training, run, seed: bool(
        training_stage.workspace(name, model, data, training, seed).find()
    ),
    "logits": lambda rows, teacher, k, scoring: bool(logits_stage.workspace(rows, teacher, k, scoring).find()),
    "evaluate": lambda models, teacher, seeds, evaluation: all(
        evaluation_stage.workspace(model, teacher, seeds, evaluation).find() for model in models.values()
    ),
    "benchmark_answers": lambda models, options, evaluation: all(
        work.find() for work in answers_stage.workspaces(models, options, evaluation).values()
    ),
    "lm_eval": lambda models, options, scoring: all(
        harness.workspace(model, options, scoring).find() for model in models.values()
    ),
}


@flow(name="stage", retries=0, validate_parameters=True)
@answers
def stage(
    stage: Literal["train", "logits", "evaluate", "benchmark_answers", "lm_eval"], arguments: dict[str, Any]
) -> Any:
    """Do one stage of a distillation here. Started by a `distill` run that has `stages_on` set, seldom by hand.

    Args:
        stage: train (sft, sft_control, kd), logits, evaluate, benchmark_answers or lm_eval
        arguments: the stage's arguments as JSON: references to artifacts, models, settings
    """
    run = STAGES[stage]
    hints = get_type_hints(run.fn)
    try:
        given = {name: TypeAdapter(hints[name]).validate_python(value) for name, value in arguments.items()}
        inspect.signature(run.fn).bind(**given)
    except (KeyError, TypeError, ValidationError) as error:
        raise ConfigurationError(f"the arguments of {stage} do not fit: {error}") from error
    return run(**given)


def placed(function: Callable[P, R], deployment: str | None) -> Callable[P, R]:
    """A stage's task, run in this process, or through a deployment of the flow `stage` where one is named.

    A finished stage is found here: nobody is sent for it.
    """
    if deployment is None:
        return function
    stage_name = next(name for name, known in STAGES.items() if known is function)
    plain: Any = STAGES[stage_name].fn
    returns = get_type_hints(plain)["return"]

    @functools.wraps(plain)
    def there(*args: P.args, **kwargs: P.kwargs) -> R:
        arguments = inspect.signature(plain).bind(*args, **kwargs).arguments
        title = str(arguments.get("name", stage_name))
        if _IS_FINISHED[stage_name](**arguments):
            return function(*args, **kwargs)
        run_name, tags = names.stage_name(title), [names.stage_tag(title)]

        def dispatch(**given: Any) -> Any:  # as arguments, from which Prefect draws the run's graph
            told = _as_anyone_would_ask(TypeAdapter(Any).dump_python(given, mode="json"))
            parameters = {"stage": stage_name, "arguments": told}
            with stage_view(title, f"in {deployment}") as view:
                wanted = Dispatched(deployment, parameters, returns, run_name, view.note, tags, view.pass_on)
                result = run_there(wanted)
                refs = list(result.values()) if isinstance(result, dict) else [result]
                seconds, cached = sum(ref.seconds for ref in refs), all(ref.cached for ref in refs)
                view.done(refs[-1].model_copy(update={"seconds": seconds, "cached": cached}), f"done in {deployment}")
                return result

        return cast("R", stage_task(name=f"{title} in {deployment}")(dispatch)(**arguments))

    return there


def _as_anyone_would_ask(value: Any) -> Any:
    """Arguments without what this run alone has spent on its artifacts, so that equal wishes are equal."""
    if isinstance(value, list):
        return [_as_anyone_would_ask(item) for item in value]
    if not isinstance(value, dict):
        return value
    is_reference = value.keys() >= ArtifactRef.model_fields.keys()
    spent = {"seconds", "cached"} if is_reference else set()
    return {name: _as_anyone_would_ask(item) for name, item in value.items() if name not in spent}
