"""An address is written down in settings, records and the UI: a key in it is refused, before any of them has it."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from tasks.augment.settings import Augmentation
from tasks.evaluate.benchmarks.settings import Judging

WITH_A_KEY = [
    "http://user:pa55word@host:1/v1",
    "https://pa55word@host/v1",
    "https://host/v1?key=pa55word",
    "https://host/v1?api-version=1&api_key=pa55word",
    "https://host/v1?api-version=1&access_token=pa55word#x",
    "https://host/v1?X-Amz-Token=pa55word",
    "https://host/v1?code=pa55word",
]
WITHOUT = [
    "http://127.0.0.1:8000/v1",
    "https://host/@team/v1",
    "https://name.openai.azure.com/openai/deployments/x?api-version=2024-10-21",
    "https://host/v1?keyboard=us&tokens=5",
]


@pytest.mark.parametrize("settings", [Augmentation, Judging])
@pytest.mark.parametrize("address", WITH_A_KEY)
def test_an_address_with_a_key_is_refused_and_not_repeated(
    settings: type[Augmentation | Judging], address: str
) -> None:
    with pytest.raises(ValidationError, match="it holds a key or a password.*put that into the environment") as refused:
        settings(api_base=address)
    assert "pa55word" not in str(refused.value)


@pytest.mark.parametrize("address", WITH_A_KEY)
def test_prefects_server_refuses_it_by_the_schema(address: str) -> None:
    assert not Draft202012Validator(Augmentation.model_json_schema()).is_valid({"api_base": address})


@pytest.mark.parametrize("address", WITHOUT)
def test_an_address_without_one_stays_as_it_is(address: str) -> None:
    assert Augmentation(api_base=address).api_base == address
    assert Draft202012Validator(Augmentation.model_json_schema()).is_valid({"api_base": address})
