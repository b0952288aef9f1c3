"""Whether a reply is of use: the answer in it, or why there is none."""

from __future__ import annotations

from typing import Any

from tasks.llm.agent import Agent, AnswerT
from tasks.llm.complaints import CUT_OFF
from tasks.llm.litellm_replies import DECLINED
from tasks.llm.reading import BadAnswer
from tasks.llm.usefulness import NoAnswer


def read(agent: Agent[AnswerT], answer: dict[str, Any], messages: list[dict[str, str]]) -> AnswerT:
    """The validated answer in a reply. Raises BadAnswer, or NoAnswer where asking again is of no use."""
    if answer["finish_reason"] == "length":
        raise BadAnswer(CUT_OFF)
    if answer["finish_reason"] == "content_filter":
        raise NoAnswer(agent.name, "declined by the provider", "its content filter stopped the answer")
    if answer["finish_reason"] == DECLINED:
        raise BadAnswer("it declines")
    if not answer["text"].strip():
        raise BadAnswer("an empty answer")
    return agent.read(answer["text"], messages[-1]["content"])
