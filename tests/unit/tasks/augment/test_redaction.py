"""What looks like a key leaves no provider process, whoever quoted it; ordinary words stay."""

from __future__ import annotations

import pytest

from tasks.llm.redaction import redacted

SECRETS = [
    "sk-proj-abcd1234efgh",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "github_pat_11ABCDEFG0_abcdefghijkl",
    "glpat-abcdefgh1234",
    "xoxb-12345-abcdef",
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    "AIzaSyA-1234567890abcdef",
    "ABSKQmVkcm9ja0FQSUtleS1hYmM=",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-def_ghi",
    "hf_abcdefghijkl",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_key_is_known_by_its_shape(secret: str) -> None:
    told = redacted(f"the server said: {secret!r} is not allowed", [])
    assert secret not in told
    assert "[key]" in told


@pytest.mark.parametrize(
    ("message", "secret"),
    [
        ("cannot reach https://me:hunter2hunter2@host/v1 now", "hunter2"),
        ("Authorization: Basic ZGlzdGlsOnBhc3N3b3Jk", "ZGlzdGls"),
        ("Authorization: Bearer abc.def", "abc.def"),
    ],
)
def test_what_stands_where_a_secret_does_is_one(message: str, secret: str) -> None:
    assert secret not in redacted(message, [])


@pytest.mark.parametrize(
    "name", ["AZURE_APIKEY", "OPENAI_API_KEY", "GITHUB_PAT", "PREFECT_API_AUTH_STRING", "DB_PASSWD"]
)
def test_a_variable_that_is_named_as_a_secret_is_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "correct horse battery")
    assert redacted("you sent correct horse battery", []) == "you sent [key]"


def test_ordinary_words_stay() -> None:
    said = "task-2 of risk-free: see https://host:8080/path, basic English; keys: a, b. eyJ is how tokens begin"
    assert redacted(said, []) == said
