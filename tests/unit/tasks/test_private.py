"""Private data in texts: found by what holds in it, and nothing that merely looks like it."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.rows import Function, Message, Row, ToolCall
from tasks.seeds.formats import parse
from tasks.shipped import DEMO
from tasks.text.private import find, masked, masked_row, private_in

PRIVATE = {
    "email": ["jane.doe+x@mail.acme.co.uk", "Zhang3@qq.com", "a@b.de"],
    "phone": [
        "+49 30 123456",
        "+1 (212) 736-5000",
        "+442079460958",
        "(212) 736-5000",
        "212-736-5000",
        "020 7946 0958",
        "(020) 7946 0958",
        "01 42 68 53 00",
        "030/1234567",
        "0171-2345678",
        "01.42.68.53.00",
        "138-0013-8000",
    ],
    "card": ["4111 1111 1111 1111", "4111111111111111", "5500-0000-0000-0004", "378282246310005", "3782 822463 10005"],
    "key": [
        "sk-proj-abcdefghij1234567890ABCDEFGHIJKLMNOP12",
        "AKIAIOSFODNN7QWERTYU",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAx1+b9fO4n3m7Yk0vJ5uQ2w==\nq8\n-----END RSA PRIVATE KEY-----",
    ],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "NL91 ABNA 0417 1643 00"],
    "national id": [  # python-stdnum's own examples
        "360426199101010071",
        "2 95 10 99 126 111 93",
        "1630615123457",
        "7503305044089",
        "44051401359",
        "15108695088",
        "17291716060",
        "36574261809",
        "85.07.30-033.28",
        "390.533.447-05",
        "2341 2341 2346",
        "123-456-782",
        "536-90-4399",
        "880320-0016",
        "131052-308T",
        "710319/2745",
        "54362315K",
        "X2482300W",
        "RCCMNL83S18D969H",
        "BOXW310820HNERXN09",
    ],
}
EACH = [(kind, value) for kind, values in PRIVATE.items() for value in values]
ORDINARY = [
    "user@example.com, root@localhost, git@github.com:owner/repo.git, https://user:pass@host.com/x",
    "y = w@x.mean() + q@k.T; @app.route('/a'); x@y.to(device); @pytest.mark.parametrize",
    "4111 1111 1111 1112, 5500000000000005, 0.4111111111111111, rng(4111111111111111), 1700000000000000",
    "DE89 3704 0044 0532 0130 01, ABCD 1234 EFGH 5678, SELECT AB12 FROM CD34",
    "AKIAIOSFODNN7EXAMPLE, sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx, task-of-a-very-long-name-in-a-repository-1",
    "(212) 555-0142, 555-0199, +1 212 555 0142, 2024-01-15, 01-15-2024, 15.01.2024, 2024/01/15 10:00:00, 10:00-12:00",
    "0 1 2 3 4 5 6 7 8 9, 192.168.10.12, 127.0.0.1:8080, 1.2.3-4, 28 024.951 4242, 1,234,567.89, +35236450.6",
    "2019 2020 2021 2022, 2010 2011 2012, 100-200-300, 12345678A, 10450000000*p + 17291716060*q, 978-3-16-148410-0",
    "WHERE id = 12345678901 AND t BETWEEN 1700000000 AND 1700000000000 LIMIT 10 OFFSET 20",
    "550e8400-e29b-41d4-a716-446655440000, 3.14159265358979323846, 0x1234567890ABCDEF, #1234567",
    "[email], [phone 2], [national id]",
]


@pytest.mark.parametrize(("kind", "value"), EACH, ids=[value[:20] for _, value in EACH])
@pytest.mark.parametrize("around", ["{}", "Write ({}), now.", "请联系{}。", 'x = "{}"', "{} {}", "<{}>\n- {}"])
def test_private_data_is_found_whole_wherever_it_stands(kind: str, value: str, around: str) -> None:
    if around == "{} {}" and kind == "national id" and " " in value:
        return  # digits in groups without an end
    text = around.format(value, value)
    found = find(text)
    assert [(one.kind, text[one.start : one.end]) for one in found] == [(kind, value)] * around.count("{}")


@pytest.mark.parametrize("text", ORDINARY)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert [text[one.start : one.end] for one in find(text)] == []


@pytest.mark.parametrize(
    ("kind", "value"), [one for one in EACH if one[0] in ("card", "iban", "national id") and one[1] != "536-90-4399"]
)
def test_a_wrong_digit_is_no_number_of_anybody(kind: str, value: str) -> None:
    """One digit changed: no card, no IBAN, and no id of the same form (another country's may be)."""
    last = max(place for place, character in enumerate(value) if character.isdigit())
    other = value[:last] + str((int(value[last]) + 1) % 10) + value[last + 1 :]
    assert [one for one in find(other) if (one.start, one.end) == (0, len(value))] == []


def test_the_demos_rows_hold_nothing_private() -> None:
    for name in ("seeds.jsonl", "heldout.jsonl"):
        rows = parse(name, (DEMO / name).read_bytes(), response_required=False)
        assert sum((private_in(row) for row in rows), Counter()) == Counter()


def test_a_value_has_one_mask_however_it_is_written() -> None:
    text = "Jane@gmx.de or bob@gmx.de, jane@GMX.de; +49 30 123456 is +4930123456"
    assert masked(text) == ("[email] or [email 2], [email]; [phone] is [phone]", Counter(email=3, phone=2))


def test_masks_hold_within_a_row_and_all_its_texts_are_masked() -> None:
    history = (
        Message(role="system", content="You are bob@gmx.de."),
        Message(role="user", content="Who is jane@gmx.de?"),
    )
    row = Row(
        instruction="Write to jane@gmx.de",
        input="card 4111 1111 1111 1111",
        response="Bob@gmx.de did.",
        history=history,
        task_category="mail",
        database="shop",
    )
    assert private_in(row) == Counter(email=4, card=1)
    hidden = masked_row(row)
    assert [turn.content for turn in hidden.history] == ["You are [email].", "Who is [email 2]?"]
    assert (hidden.instruction, hidden.input, hidden.response) == ("Write to [email 2]", "card [card]", "[email] did.")
    assert (hidden.task_category, hidden.database, hidden.history[0].role) == ("mail", "shop", "system")
    assert private_in(hidden) == Counter()
    plain = Row(instruction="Count the users", response="SELECT count(*) FROM users")
    assert masked_row(plain) is plain


def test_what_tools_are_called_with_and_answer_is_masked_and_stays_json() -> None:
    called = {"to": "jane@gmx.de", "cards": [4111111111111111, 5], "by bob@gmx.de": None, "now": True}
    call = ToolCall(id="call00001", function=Function(name="mail", arguments=json.dumps(called)))
    defined = json.dumps([{"type": "function", "function": {"name": "mail", "description": "Of bob@gmx.de"}}])
    turns = (
        Message(role="assistant", content="To jane@gmx.de.", tool_calls=(call,)),
        Message(role="tool", content="bob@gmx.de sent it", tool_call_id=call.id, name="mail"),
    )
    row = Row(instruction="Write.", history=turns, tool_turns=turns, tool_calls=(call,), tools=defined)
    assert private_in(row) == Counter(email=11, card=3)
    hidden = masked_row(row)
    assert private_in(hidden) == Counter()
    assert hidden.history == hidden.tool_turns
    assert [turn.content for turn in hidden.tool_turns] == ["To [email].", "[email 2] sent it"]
    assert [json.loads(call.function.arguments) for call in (*hidden.history[0].tool_calls, *hidden.tool_calls)] == [
        {"to": "[email]", "cards": ["[card]", 5], "by [email 2]": None, "now": True}
    ] * 2
    assert hidden.definitions[0]["function"] == {"name": "mail", "description": "Of [email 2]"}
    for part in ("history", "tool_turns", "tool_calls", "tools"):
        empty = {"history": (), "tool_turns": (), "tool_calls": (), "tools": ""}
        alone = row.model_copy(update={**empty, part: getattr(row, part)})
        assert private_in(masked_row(alone)) == Counter() != private_in(alone)


@given(
    st.lists(st.sampled_from([value for _, value in EACH]) | st.text(max_size=12), max_size=8), st.sampled_from(" ,\n")
)
def test_what_is_found_does_not_overlap_and_nothing_is_left_when_masked(parts: list[str], between: str) -> None:
    text = between.join(parts)
    found = find(text)
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert all(one.end <= other.start for one, other in itertools.pairwise(found))
    hidden, counts = masked(text)
    assert counts == Counter(one.kind for one in found)
    edges = [0, *itertools.chain(*((one.start, one.end) for one in found)), len(text)]
    kept = [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    assert all(part in hidden for part in kept)
    if not found:
        assert hidden == text
