"""Templates of two dozen families rendered, masked, ended and aligned as their own files say."""

from __future__ import annotations

import functools
import itertools
import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import ConfigurationError
from infra.store.artifacts import digest_of
from tasks.engines.generation import Ends
from tasks.models import ModelSource, load_tokenizer
from tasks.rows import Message, Row
from tasks.tokens.alignment import Alignment, vocabulary_of
from tasks.tokens.chat import Turn, added_tokens, stop_ids, takes_system_turns, turn_of
from tasks.tokens.rows import ChatFormat, Skipped, TokenisedRow, tokenise, tokenizer_digests
from tasks.tokens.scored import ScoredRow
from tests.support.templates import FAMILIES, source_of

ROW = Row(instruction="the name of the book", response="SELECT name FROM books\n  WHERE price >= 10;")
PAIRS = [pair for pair in itertools.permutations(FAMILIES, 2) if len({FAMILIES[name].kind for name in pair}) == 1]
DATE: dict[str, Any] = {"strftime_now": date(2024, 7, 26).strftime}
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSource]:
    folder = tmp_path_factory.mktemp("families")
    return {name: source_of(family, folder / name, name) for name, family in FAMILIES.items()}


@pytest.fixture(scope="module")
def tokenizers(sources: dict[str, ModelSource]) -> dict[str, Any]:
    return {name: load_tokenizer(source) for name, source in sources.items()}


@pytest.fixture(scope="module")
def rows(tokenizers: dict[str, Any]) -> dict[str, TokenisedRow]:
    tokenised = {name: tokenise(ROW, tokenizer, 512) for name, tokenizer in tokenizers.items()}
    return {name: row for name, row in tokenised.items() if isinstance(row, TokenisedRow)}


@every_family
def test_a_response_is_itself_and_what_closes_it(name: str, sources: Any, tokenizers: Any, rows: Any) -> None:
    row, tokenizer, turn = rows[name], tokenizers[name], turn_of(sources[name])
    assert turn.end == FAMILIES[name].end
    response = row.ids[row.response_start :]
    assert tokenizer.convert_ids_to_tokens(response[-1]) == turn.end
    assert response.index(response[-1]) == len(response) - 1
    _spans, text = vocabulary_of(sources[name]).spans(np.array(response))
    before = functools.reduce(lambda left, token: left.replace(token, ""), FAMILIES[name].control, turn.before)
    assert text.decode() == before + ROW.response + turn.after  # to the space


@every_family
def test_the_prompt_is_what_generation_sees(name: str, tokenizers: Any, rows: Any) -> None:
    told = [message.model_dump() for message in ROW.prompt]
    text = tokenizers[name].apply_chat_template(told, tokenize=False, add_generation_prompt=True, **DATE)
    row = rows[name]
    assert row.ids[: row.response_start] == tokenizers[name].encode(text, add_special_tokens=False)


class _AnotherDay(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> _AnotherDay:
        return cls(2031, 1, 5)


@every_family
def test_a_row_is_the_same_on_every_day(
    name: str, sources: Any, tokenizers: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    today, digests = turn_of(sources[name]), tokenizer_digests(sources[name])
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", _AnotherDay)
    assert tokenise(ROW, tokenizers[name], 512) == rows[name]
    assert turn_of(sources[name]) == today
    assert tokenizer_digests(sources[name]) == digests
    dated = "strftime_now" in FAMILIES[name].template
    assert ("2024" in tokenizers[name].decode(rows[name].ids).replace("April 2024", "")) == dated
    # what writes no date is known by what it always was
    assert (digests["template"] == digest_of(FAMILIES[name].template)[:32]) == (not dated)


# what becomes of a row with a system message, where it does not stand in the prompt
NO_SYSTEM = {
    "gemma": "the chat template refuses it: System role not supported",
    "mistral 7b": "the chat template refuses it: Conversation roles must alternate user/assistant/user/assistant/...",
    "llama2": "the chat template leaves out its system message",
}


@every_family
def test_a_system_message_is_in_the_prompt_or_the_row_left_out(name: str, sources: Any, tokenizers: Any) -> None:
    row = ROW.model_copy(update={"history": (Message(role="system", content="Be brief."),)})
    tokenised = tokenise(row, tokenizers[name], 512)
    assert takes_system_turns(sources[name]) == (name not in NO_SYSTEM)
    if name in NO_SYSTEM:
        assert tokenised == Skipped(row.id, NO_SYSTEM[name])
    else:
        assert isinstance(tokenised, TokenisedRow)
        said = tokenizers[name].decode(tokenised.ids[: tokenised.response_start])
        assert said.count("Be brief.") == 1
        assert said.index("Be brief.") < said.index(ROW.instruction)


def test_an_answer_that_control_tokens_open_is_told_without_what_was_said_before_it(
    sources: Any, tokenizers: Any
) -> None:
    """GPT-OSS thinks in a channel of its own, and names the channel of its answer."""
    tokenizer = tokenizers["gpt-oss"]
    ends = Ends.of(sources["gpt-oss"], tokenizer)
    for before in ("<|channel|>analysis<|message|>how?<|end|><|start|>assistant", ""):
        written = f"{before}<|channel|>final<|message|>the name<|return|>"
        told = ends.answer(tokenizer.encode(written, add_special_tokens=False))
        assert (told.text, told.truncated) == ("the name", False)
        assert told.tokens == len(tokenizer.encode("the name", add_special_tokens=False))
    assert all(not Ends.of(sources[name], tokenizers[name]).opening for name in FAMILIES if name != "gpt-oss")


@every_family
def test_generation_ends_where_turns_do_and_where_the_model_says(name: str, sources: Any, tokenizers: Any) -> None:
    family, tokenizer = FAMILIES[name], tokenizers[name]
    ends = Ends.of(sources[name], tokenizer)
    assert set(ends.stop_ids) == set(tokenizer.convert_tokens_to_ids([family.end, family.eos, *family.own]))
    answer = tokenizer.encode("the name", add_special_tokens=False)
    for stop in ends.stop_ids:
        told = ends.answer([*answer, stop, *answer])
        assert (told.text.strip(), told.tokens, told.truncated) == ("the name", len(answer), False)
    assert ends.answer(answer).truncated


# what a template writes as plain text: no token, and an injection all the same
MARKS = {
    **dict.fromkeys(("llama2", "mistral 7b"), ("[INST]", "[/INST]")),
    "olmo2": ("<|user|>", "<|assistant|>", "<|system|>"),
    "no token at all": ("### user:", "### assistant:"),
}


@every_family
def test_text_that_would_speak_as_the_template_is_left_out(name: str, tokenizers: Any) -> None:
    for token in (*FAMILIES[name].control, *MARKS.get(name, ())):
        for hostile in (
            ROW.model_copy(update={"instruction": f"x{token}y"}),
            ROW.model_copy(update={"history": (Message(role="user", content=token),)}),
        ):
            skipped = tokenise(hostile, tokenizers[name], 512)
            assert isinstance(skipped, Skipped), token
            assert skipped.reason == "contains a control token of the chat template"


@every_family
def test_an_empty_token_is_in_no_row(name: str, sources: Any, tmp_path: Path) -> None:
    empty = _changed(sources[name], tmp_path, "tokenizer_config.json", lambda told: {**told, "unk_token": ""})
    assert isinstance(tokenise(ROW, load_tokenizer(empty), 512), TokenisedRow)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_the_same_answer_aligns_whatever_stands_around_it(teacher: str, student: str, sources: Any, rows: Any) -> None:
    vocabularies = vocabulary_of(sources[teacher]), vocabulary_of(sources[student])
    scored, own = _scored(rows[teacher]), rows[student]
    alignment = Alignment(*vocabularies)
    ids, logprobs = alignment.move(scored, own)
    assert alignment.rows_with_other_text == 0
    moved = np.isfinite(logprobs[:, 0])
    labels = np.array(own.ids[own.response_start :])
    assert (ids[moved, 0] == labels[moved]).all()
    assert moved[-1]  # the end of the turn, whatever its name
    spans, text = vocabularies[1].response_spans(labels)
    within = spans[:, 0] < spans[:, 1]
    assert text.decode() == ROW.response
    assert moved[within].mean() > 0.8  # all but tokens that reach into the template's text


def test_one_tokenizer_in_files_of_different_age_is_one(sources: Any, tmp_path: Path) -> None:
    source = sources["llama3"]
    digests = tokenizer_digests(source)

    def old_merges(told: Any) -> Any:
        merges = [" ".join(pair) for pair in told["model"]["merges"]]
        return {**told, "model": {**told["model"], "merges": merges}}

    older = _changed(source, tmp_path / "merges", "tokenizer.json", old_merges)
    assert tokenizer_digests(older) == digests
    newline = _changed(
        source,
        tmp_path / "newline",
        "tokenizer_config.json",
        lambda told: {**told, "chat_template": told["chat_template"] + "\n"},
    )
    assert tokenizer_digests(newline) == digests
    (tmp_path / "file").mkdir()
    moved = _changed(
        source,
        tmp_path / "file",
        "tokenizer_config.json",
        lambda told: {name: value for name, value in told.items() if name not in ("chat_template", "eos_token")},
    )
    assert moved.path is not None
    Path(moved.path, "chat_template.jinja").write_text(FAMILIES["llama3"].template)
    Path(moved.path, "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|end_of_text|>"}}))
    assert tokenizer_digests(moved) == digests
    other = _changed(source, tmp_path / "other", "tokenizer.json", lambda told: {**told, "pre_tokenizer": None})
    assert tokenizer_digests(other)["vocabulary"] != digests["vocabulary"]


def test_an_end_that_only_the_model_knows_is_found_by_its_id(sources: Any, tmp_path: Path) -> None:
    source = sources["no token at all"]
    eos = next(token for token, text in added_tokens(source).items() if text == "</s>")
    bare = _changed(
        source,
        tmp_path,
        "tokenizer_config.json",
        lambda told: {name: value for name, value in told.items() if name != "eos_token"},
    )
    with pytest.raises(ConfigurationError, match="nothing tells the end of an answer of 'some'"):
        turn_of(bare)
    assert bare.path is not None
    Path(bare.path, "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert turn_of(bare) == Turn("", "\n\n", "</s>")
    assert stop_ids(bare, eos, None) == (eos,)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no') }}", "renders no question and answer: no"),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
            "differently",
        ),
        (  # DeepSeek-R1 drops the thoughts of every answer, and opens one in the prompt
            "{% for m in messages %}{{ '<｜Assistant｜>' if m.role == 'assistant' }}"
            "{{ m.content.split('</think>')[-1] }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
            "differently",
        ),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not render the answer"),
        ("{% for m in messages", "renders no question and answer"),
    ],
)
def test_templates_that_are_of_no_use_are_refused(template: str, words: str, sources: Any, tmp_path: Path) -> None:
    changed = _changed(
        sources["llama2"], tmp_path, "tokenizer_config.json", lambda told: {**told, "chat_template": template}
    )
    with pytest.raises(ConfigurationError, match=words):
        turn_of(changed)


def test_thoughts_are_no_control_tokens(tokenizers: Any) -> None:
    thoughtful = ROW.model_copy(update={"response": "<think>\nhow?\n</think>\n\nSELECT 1"})
    assert isinstance(tokenise(thoughtful, tokenizers["qwen3"], 512), TokenisedRow)
    assert ChatFormat.of(tokenizers["qwen3"]).control.search("<think>") is None


def _changed(source: ModelSource, folder: Path, name: str, change: Any) -> ModelSource:
    folder.mkdir(exist_ok=True)
    assert source.path is not None
    for path in Path(source.path).iterdir():
        text = path.read_text()
        (folder / path.name).write_text(json.dumps(change(json.loads(text))) if path.name == name else text)
    return ModelSource(name="some", path=str(folder))


def _scored(row: TokenisedRow) -> ScoredRow:
    """The actual token first, then another."""
    response = np.array(row.ids[row.response_start :], dtype=np.int32)
    logprobs = np.log(np.tile(np.array([0.6, 0.4], np.float32), (len(response), 1)))
    return ScoredRow(
        "r", row.ids, row.response_start, logprobs[:, 0], np.stack([response, np.roll(response, 1)], axis=1), logprobs
    )
