"""One stage alone: what a GPU pool runs for a `distill` run elsewhere."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, cast, get_type_hints

from prefect import flow
from pydantic import TypeAdapter, ValidationError

from flows.dispatch import run_there
from flows.dispatched import answers
from infra.errors import ConfigurationError
from infra.stage_task import stage_task
from infra.ui import stage_view
from tasks.evaluate.benchmark_tasks import benchmark_answers, lm_eval
from tasks.evaluate.task import evaluate
from tasks.logits.task import score_logits
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
    """A stage's task, run in this process, or through a deployment of the flow `stage` where one is named."""
    if deployment is None:
        return function
    stage_name = next(name for name, known in STAGES.items() if known is function)
    plain: Any = STAGES[stage_name].fn
    returns = get_type_hints(plain)["return"]

    @functools.wraps(plain)
    def there(*args: P.args, **kwargs: P.kwargs) -> R:
        arguments = inspect.signature(plain).bind(*args, **kwargs).arguments
        title = str(arguments.get("name", stage_name))

        def dispatch() -> Any:
            parameters = {"stage": stage_name, "arguments": TypeAdapter(Any).dump_python(arguments, mode="json")}
            with stage_view(title, f"in {deployment}") as view:
                result = run_there(deployment, parameters, returns, title, view.note)
                refs = list(result.values()) if isinstance(result, dict) else [result]
                seconds, cached = sum(ref.seconds for ref in refs), all(ref.cached for ref in refs)
                view.done(refs[-1].model_copy(update={"seconds": seconds, "cached": cached}), f"done in {deployment}")
                return result

        return cast("R", stage_task(name=f"{title} in {deployment}")(dispatch)())

    return there
