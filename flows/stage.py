"""One stage alone: what a GPU pool runs for a `distill` run elsewhere."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import ValidationError, WithJsonSchema

import flows.pipeline  # noqa: F401 (it defines the stages)
from infra.errors import ConfigurationError
from infra.orchestration.remote_run import leaves_result
from infra.orchestration.run import Stages
from infra.stage import Made, kinds

STAGES = {kind: stage for kind, stage in sorted(kinds().items()) if stage.on_workers}


@flow(name="stage", retries=0, validate_parameters=True)
@leaves_result
def stage(
    stage: Annotated[str, WithJsonSchema({"type": "string", "enum": list(STAGES)})], arguments: dict[str, Any]
) -> Made:
    """Run one stage as a `distill` run asks for it; what is finished is found and not done again.

    Args:
        stage: which one
        arguments: the stage's fields as JSON: references to artifacts, models, settings
    """
    if stage not in STAGES:
        raise ConfigurationError(f"there is no stage {stage!r} for workers: use {', '.join(STAGES)}")
    try:
        asked = STAGES[stage].model_validate(arguments)
    except ValidationError as error:
        raise ConfigurationError(f"the arguments of {stage} do not fit: {error}") from error
    stages = Stages()
    stages.run(asked)
    return stages.made[asked.title]
