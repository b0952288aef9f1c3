"""What comes out of batches that run side by side: one error, not a group of them."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from infra.errors import ConfigurationError
from tasks.llm.session import run_async


class Signal(BaseException):
    """As Prefect raises it in the main thread, wherever that is at the time: here in a batch."""


def _raising(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def batch() -> None:
        raise error

    return batch


async def _side_by_side(*batches: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.TaskGroup() as outer:
        for batch in batches:

            async def inner(batch: Callable[[], Awaitable[None]] = batch) -> None:
                async with asyncio.TaskGroup() as group:
                    group.create_task(batch())  # type: ignore[arg-type]

            outer.create_task(inner())


def test_a_signal_comes_out_as_itself_whatever_failed_beside_it() -> None:
    with pytest.raises(Signal):
        run_async(_side_by_side(_raising(Signal()), _raising(ValueError("in its wake"))))


def test_an_error_of_ours_comes_out_as_itself() -> None:
    with pytest.raises(ConfigurationError, match="no key"):
        run_async(_side_by_side(_raising(ConfigurationError("no key"))))


def test_errors_that_we_do_not_know_stay_a_group() -> None:
    with pytest.raises(ExceptionGroup):
        run_async(_side_by_side(_raising(ValueError("a bug"))))
