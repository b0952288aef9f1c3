"""A task category is about what its words say, and not what stands inside of them."""

import pytest

from tasks.text import categories


@pytest.mark.parametrize("category", ["code", "Code-Generation", "python3", "CodeAlpaca", "source_code", "programming"])
def test_code(category: str) -> None:
    assert categories.is_code(category)
    assert categories.needs_steps(category)


@pytest.mark.parametrize("category", ["math", "Math Word Problems", "arithmetic", "word problem", "math_qa", "MathQA"])
def test_maths(category: str) -> None:
    assert categories.is_maths(category)
    assert categories.needs_steps(category)


@pytest.mark.parametrize(
    "category",
    [
        "barcode",
        "postcode lookup",
        "decoder",
        "biological",
        "biology",
        "psychological",
        "aftermath",
        "tv programme",
        "",
    ],
)
def test_what_only_sounds_like_it(category: str) -> None:
    assert not categories.is_code(category)
    assert not categories.is_maths(category)
    assert not categories.needs_steps(category)


def test_python_is_a_kind_of_code() -> None:
    assert categories.is_python("Python functions")
    assert not categories.is_python("code")
    assert categories.needs_steps("Logical reasoning")
