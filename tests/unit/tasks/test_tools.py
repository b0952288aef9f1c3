"""Tools through chat templates: the very text, the very tokens that are supervised, and what no template can write."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigurationError
from tasks.models import ModelSource, load_tokenizer
from tasks.rows import Function, Message, Row, ToolCall
from tasks.tokens.chat import named_tokens, template_of
from tasks.tokens.rows import Skipped, TokenisedRow, prompt_and_text, tokenise, tokenizer_digests
from tasks.tokens.spans import RESPONSE
from tasks.tokens.tools import UNKNOWN, ToolForm, knows_tools, tool_form
from tests.support.templates import FAMILIES, Family, source_of
from tests.support.tool_templates import IN_PART, TOOL_FAMILIES

TOOL = {"type": "function", "function": {"name": "price_of", "parameters": {"type": "object", "properties": {}}}}
FORMS = {
    **dict.fromkeys(("qwen2.5", "qwen3", "qwen3 coder", "llama3.1", "mistral"), ToolForm(True, False)),
    "deepseek": ToolForm(False, True),
}


def _call(number: int, **arguments: Any) -> ToolCall:
    return ToolCall(id=f"call{number:05}", function=Function(name="price_of", arguments=json.dumps(arguments)))


def _calls(*calls: ToolCall, content: str = "") -> Message:
    return Message(role="assistant", content=content, tool_calls=calls)


def _result(number: int, content: str) -> Message:
    return Message(role="tool", content=content, tool_call_id=f"call{number:05}", name="price_of")


ROW = Row(
    instruction="What is the price?",
    response="It is 5.",
    tools=json.dumps([TOOL]),
    tool_turns=(_calls(_call(1, title="the book")), _result(1, 'five "euros"')),
)
LAST_CALL = Row(instruction="What is the price?", tools=ROW.tools, tool_calls=(_call(1, title="the book"),))
SECOND = Row(
    instruction="And the other?",
    response="It is 7.",
    tools=ROW.tools,
    history=(*ROW.prompt, Message(role="assistant", content=ROW.response)),
    tool_turns=(_calls(_call(2, title="the other")), _result(2, "seven")),
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSource]:
    folder = tmp_path_factory.mktemp("families")
    return {name: source_of(family, folder / name, name) for name, family in TOOL_FAMILIES.items()}


@pytest.fixture(scope="module")
def tokenizers(sources: dict[str, ModelSource]) -> dict[str, Any]:
    return {name: load_tokenizer(source) for name, source in sources.items()}


# The text of ROW, in parts; whether each is supervised.
TEXTS: dict[str, list[tuple[str, bool]]] = {
    "qwen2.5": [
        (f"<|im_start|>system\nHelp.\n\n# Tools\n<tools>\n{json.dumps(TOOL)}\n</tools><|im_end|>\n", False),
        ("<|im_start|>user\nWhat is the price?<|im_end|>\n<|im_start|>assistant\n", False),
        ('<tool_call>\n{"name": "price_of", "arguments": {"title": "the book"}}\n</tool_call><|im_end|>', True),
        ("\n<|im_start|>user", False),
        ('\n<tool_response>\nfive "euros"\n</tool_response><|im_end|>\n<|im_start|>assistant\n', False),
        ("It is 5.<|im_end|>", True),
    ],
    "qwen3 coder": [
        (f"<|im_start|>system\nHelp.\n\n# Tools\n<tools>\n{json.dumps(TOOL)}\n</tools><|im_end|>\n", False),
        ("<|im_start|>user\nWhat is the price?<|im_end|>\n<|im_start|>assistant\n", False),
        (
            "<tool_call>\n<function=price_of>\n<parameter=title>\nthe book\n</parameter>\n</function>\n</tool_call>",
            True,
        ),
        ("<|im_end|>", True),
        ('\n<|im_start|>user\n<tool_response>\nfive "euros"\n</tool_response><|im_end|>\n', False),
        ("<|im_start|>assistant\n", False),
        ("It is 5.<|im_end|>", True),
    ],
    "llama3.1": [
        ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>", False),
        (f"\n\n{json.dumps(TOOL, indent=4)}\n\nWhat is the price?<|eot_id|>", False),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n", False),
        ('{"name": "price_of", "parameters": {"title": "the book"}}<|eot_id|>', True),
        ('<|start_header_id|>ipython<|end_header_id|>\n\n"five \\"euros\\""<|eot_id|>', False),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n", False),
        ("It is 5.<|eot_id|>", True),
    ],
    "mistral": [
        (f"<s>[AVAILABLE_TOOLS]{json.dumps([TOOL])}[/AVAILABLE_TOOLS][INST]What is the price?[/INST]", False),
        ('[TOOL_CALLS][{"name": "price_of", "arguments": {"title": "the book"}, "id": "call00001"}]</s>', True),
        ('[TOOL_RESULTS]{"content": "five \\"euros\\"", "call_id": "call00001"}[/TOOL_RESULTS]', False),
        ("It is 5.</s>", True),
    ],
    "deepseek": [
        (f"<｜begin▁of▁sentence｜>{json.dumps([TOOL])}\n\n<｜User｜>What is the price?<｜Assistant｜>", False),
        ('<｜call｜>price_of\n{"title": "the book"}<｜end▁of▁sentence｜>', True),
        ('<｜output｜>five "euros"<｜Assistant｜>', False),
        ("It is 5.<｜end▁of▁sentence｜>", True),
    ],
}


@pytest.mark.parametrize("name", TEXTS)
def test_calls_are_supervised_and_what_tools_answer_is_not(name: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[name]
    row = tokenise(ROW, tokenizer, 2_000, "all")
    assert isinstance(row, TokenisedRow)
    assert tokenizer.decode(row.ids) == "".join(text for text, _ in TEXTS[name])
    ids: list[int] = []
    supervised: list[int] = []
    for text, is_answer in TEXTS[name]:
        part = tokenizer.encode(text, add_special_tokens=False)
        supervised += range(len(ids), len(ids) + len(part)) if is_answer else ()
        ids += part
    assert list(row.ids) == ids
    assert row.places_R.tolist() == supervised
    assert ([span.turn for span in row.spans], row.unsupervised) == ([1, RESPONSE], 0)


@pytest.mark.parametrize("name", TEXTS)
def test_a_call_is_a_response_as_any_other(name: str, tokenizers: dict[str, Any]) -> None:
    alone = tokenise(LAST_CALL, tokenizers[name], 2_000)
    whole = tokenise(ROW, tokenizers[name], 2_000, "all")
    assert isinstance(alone, TokenisedRow)
    assert isinstance(whole, TokenisedRow)
    assert list(whole.ids[: len(alone.ids)]) == list(alone.ids)
    assert (alone.response_start, len(alone.ids)) == whole.earlier[0][1:]


@pytest.mark.parametrize(
    ("name", "turns", "unsupervised"),
    [
        ("qwen2.5", [1, 3, 5], 0),
        ("llama3.1", [1, 3, 5], 0),
        ("deepseek", [1, 3, 5], 0),
        ("mistral", [5], 2),  # whose tools move along to the last question
        ("qwen3", [], 3),
    ],
)
def test_what_a_template_rewrites_is_not_supervised(
    name: str, turns: list[int], unsupervised: int, tokenizers: dict[str, Any]
) -> None:
    row = tokenise(SECOND, tokenizers[name], 2_000, "all")
    assert isinstance(row, TokenisedRow)
    assert ([span.turn for span in row.earlier], row.unsupervised) == (turns, unsupervised)
    said = tokenizers[name].decode([row.ids[place] for place in row.places_R])
    assert "seven" not in said
    assert "euros" not in said
    assert said.count("price_of") == len([turn for turn in turns if turn != 3])


def test_calls_side_by_side_and_words_beside_them(tokenizers: dict[str, Any]) -> None:
    turns = (
        _calls(_call(1, title="é"), _call(2), content="Let me see."),
        _result(1, "1"),
        _result(2, ""),
    )
    row = ROW.model_copy(update={"tool_turns": turns})
    made = tokenise(row, tokenizers["qwen2.5"], 2_000, "all")
    assert isinstance(made, TokenisedRow)
    first = made.earlier[0]
    assert tokenizers["qwen2.5"].decode(made.ids[first.start : first.stop]) == (
        'Let me see.\n<tool_call>\n{"name": "price_of", "arguments": {"title": "é"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "price_of", "arguments": {}}\n</tool_call><|im_end|>'
    )
    refused = tokenise(row, tokenizers["llama3.1"], 2_000, "all")
    assert isinstance(refused, Skipped)
    assert refused.reason.endswith("This model only supports single tool-calls at once!")


@pytest.mark.parametrize("name", FORMS)
def test_how_a_template_takes_calls_is_seen_in_what_it_writes(name: str, sources: dict[str, ModelSource]) -> None:
    source = sources[name]
    assert (
        tool_form(template_of(source), named_tokens(source, source.json_file("tokenizer_config.json"))) == FORMS[name]
    )
    assert knows_tools(source)


@pytest.mark.parametrize("family", [*FAMILIES, *IN_PART])
def test_a_template_that_does_not_write_all_of_it_skips_what_uses_tools(family: str, tmp_path: Path) -> None:
    qwen = TOOL_FAMILIES["qwen2.5"]
    of_it = FAMILIES.get(family) or dataclasses.replace(qwen, template=IN_PART[family])
    source = source_of(of_it, tmp_path)
    assert not knows_tools(source)
    tokenizer = load_tokenizer(source)
    for row in (ROW, LAST_CALL, Row(instruction="Hi", response="Hello", tools=ROW.tools), SECOND):
        assert tokenise(row, tokenizer, 2_000, "all") == Skipped(row.id, UNKNOWN)
    assert isinstance(tokenise(Row(instruction="Hi", response="Hello"), tokenizer, 2_000, "all"), TokenisedRow)
    with pytest.raises(ConfigurationError, match=UNKNOWN):
        prompt_and_text(ROW.messages, tokenizer, ROW.definitions)


def _with_template(tmp_path: Path, change: Any) -> Any:
    qwen = TOOL_FAMILIES["qwen2.5"]
    return load_tokenizer(source_of(dataclasses.replace(qwen, template=change(qwen.template)), tmp_path))


def test_a_template_that_forgets_earlier_results_or_calls_says_so(tmp_path: Path) -> None:
    tail = "{% for m in messages[-4:] if m.role != 'system' %}"
    short = _with_template(tmp_path, lambda text: text.replace("{% for m in messages %}", tail))
    assert isinstance(tokenise(ROW, short, 2_000, "all"), TokenisedRow)
    assert tokenise(SECOND, short, 2_000, "all") == Skipped(SECOND.id, "the chat template leaves out a tool's result")


@pytest.mark.parametrize(
    "change",
    [
        {"tools": json.dumps([{**TOOL, "function": {"name": "x", "description": "<|im_end|>"}}])},
        {"tool_turns": (_calls(_call(1, title="<|im_start|>system")), _result(1, "5"))},
        {"tool_turns": (_calls(_call(1, title="</tool_call>")), _result(1, "5"))},
        {"tool_turns": (_calls(_call(1)), _result(1, "5<|im_end|>\n<|im_start|>user"))},
        {"tool_calls": (_call(1, title="<|im_end|>"),)},
    ],
)
def test_nothing_of_tools_speaks_as_the_template(change: dict[str, Any], tokenizers: dict[str, Any]) -> None:
    row = ROW.model_copy(update=change)
    skipped = Skipped(row.id, "contains a control token of the chat template")
    assert tokenise(row, tokenizers["qwen2.5"], 2_000) == skipped


def _in_config(folder: Path, plain: str, with_tools: str) -> None:
    path = folder / "tokenizer_config.json"
    named = [{"name": "default", "template": plain}, {"name": "tool_use", "template": with_tools}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))


def _in_files(folder: Path, plain: str, with_tools: str) -> None:
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in told.items() if name != "chat_template"}))
    (folder / "chat_template.jinja").write_text(plain)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(with_tools)


@pytest.mark.parametrize("write", [_in_config, _in_files])
def test_a_model_with_a_template_of_its_own_for_tools_uses_it_for_them_alone(write: Any, tmp_path: Path) -> None:
    family: Family = TOOL_FAMILIES["qwen2.5"]
    source = source_of(family, tmp_path)
    write(tmp_path, FAMILIES["qwen2.5"].template, family.template)
    without = dataclasses.replace(family, template=FAMILIES["qwen2.5"].template)
    both, plain_one = (tokenizer_digests(one) for one in (source, source_of(without, tmp_path / "without")))
    assert {part for part in both if both[part] != plain_one[part]} == {"template"}
    tokenizer = load_tokenizer(source)
    assert knows_tools(source)
    row = tokenise(ROW, tokenizer, 2_000, "all")
    assert isinstance(row, TokenisedRow)
    assert tokenizer.decode(row.ids) == "".join(text for text, _ in TEXTS["qwen2.5"])
    plain = tokenise(Row(instruction="Hi", response="Hello"), tokenizer, 2_000)
    assert isinstance(plain, TokenisedRow)
    assert tokenizer.decode(plain.ids).startswith("<|im_start|>user\nHi<|im_end|>")
