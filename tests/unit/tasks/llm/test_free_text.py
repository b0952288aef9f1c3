"""A conversation as it is: asked once, its answer kept whatever it is of, with what was told of its tokens."""

from pathlib import Path
from typing import Any

import pytest

from tasks.llm.agent import FreeText, Said
from tasks.llm.client import LLMClient
from tasks.llm.protocol import Reply
from tasks.llm.usefulness import NoAnswer
from tests.support.fake_providers import MODEL, Setting

TEACHER = FreeText("teacher", Said, __name__)
ASKED = [{"role": "user", "content": "What is it?"}]
TOLD = [["It", -0.1, [["It", -0.1]]]]


def _converse(client: LLMClient, setting: Setting) -> Any:
    return client.converse(setting.usage, TEACHER, ASKED, top_logprobs=5)


def test_the_answer_comes_with_the_log_probs_of_its_tokens_from_the_cache_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tmp_path, monkeypatch)
    providers = setting.providers(lambda request: Reply("It", 10, 2, 0.5, MODEL, "stop", logprobs=TOLD))
    for _time in range(2):
        said, reply = setting.run(lambda client: _converse(client, setting))
        assert said.text == "It"
        assert reply["logprobs"] == TOLD
    [request] = providers.asked
    assert request.messages == ASKED
    assert request.schema is None
    assert request.top_logprobs == 5
    assert setting.usage["teacher"].from_cache == 1


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply("It is", 10, 2, 0.5, MODEL, "length"), "cut off at max_output_tokens"),
        (Reply(" ", 10, 2, 0.5, MODEL, "stop"), "an empty answer"),
        (Reply("No.", 10, 2, 0.5, MODEL, "refusal"), "it declines"),
        (Reply("It", 10, 2, 0.5, MODEL, "content_filter"), "declined by the provider"),
    ],
)
def test_an_answer_of_no_use_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: Reply, why: str
) -> None:
    setting = Setting(tmp_path, monkeypatch)
    providers = setting.providers(lambda request: reply)
    for _time in range(2):
        with pytest.raises(NoAnswer, match=why):
            setting.run(lambda client: _converse(client, setting))
    assert len(providers.asked) == 1
    assert setting.usage["teacher"].paid_usd == 0.5
