"""What an experiment asks, and how its arms are compared."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.report.experiment.arms import Measure

Cost = Literal["device_seconds", "usd", "rows", "store_bytes"]


class ExperimentQuestion(BaseModel):
    """The question, and which arm answers it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    question: str
    measure: Measure = "exec_accuracy"
    unchecked: Measure = Field("cross_entropy", description="what is compared where answers are not checked")
    asks: Literal["which", "trend", "saturation"] = Field(
        "which",
        description="which arm to take; whether the measure changes from the first arm to the last; or from where on "
        "more of the first parameter pays no more",
    )
    prefer: Literal["listed"] | Cost = Field(
        "listed", description="of arms that are as good the one that costs least, or that is listed first"
    )
    worth: float = Field(0.01, ge=0, description="gain in the measure below which a dearer arm is not worth it")
    against: tuple[str, ...] = Field((), description="parameters and costs that quality is drawn against")
