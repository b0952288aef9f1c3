"""Settings of quantised students, and what one is called."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

Format = Literal["q8_0", "q4_k_m", "int8", "fp8"]
FORMATS: tuple[Format, ...] = get_args(Format)
GGUF: frozenset[Format] = frozenset({"q8_0", "q4_k_m"})
_BITS: dict[Format, int] = {"q8_0": 8, "q4_k_m": 4, "int8": 8, "fp8": 8}


class Quantisation(BaseModel):
    """Which formats a student is made in as well, to be compared with it before one of them is shipped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    formats: tuple[Format, ...] = Field(
        (), description="q8_0 and q4_k_m (GGUF, for llama.cpp), int8 and fp8 (compressed-tensors, for vLLM)"
    )
    student: str = Field(
        "kd",
        pattern=r"^(sft|sft_control|kd|kd_continued|round_[1-9]\d*)$",
        description="which trained student: sft, sft_control, kd, kd_continued, round_1 …",
    )

    @field_validator("formats")
    @classmethod
    def _each_once(cls, formats: tuple[Format, ...]) -> tuple[Format, ...]:
        """In our own order, so that how they were given changes nothing."""
        return tuple(one for one in FORMATS if one in formats)

    @property
    def names(self) -> dict[str, Format]:
        """The variants that come of it."""
        return {quantised_name(self.student, one): one for one in self.formats}


def quantised_name(student: str, form: Format) -> str:
    """A student in a format, as a variant: kd_q4_k_m."""
    return f"{student}_{form}"


def format_of(name: str) -> tuple[str, Format | None]:
    """The student that a variant is, and the format it is in; None of one that is not quantised."""
    for form in FORMATS:
        if name.endswith(f"_{form}"):
            return name.removesuffix(f"_{form}"), form
    return name, None


def bits(form: Format) -> int:
    """Of a weight, in round figures."""
    return _BITS[form]
