"""Global concurrency limits of the Prefect server: GPUs and requests to an LLM provider, shared by all runs.

`with held("gpu", 2, note): …` is strict: the body runs only while the server counts its slots.

Prefect's own `concurrency(strict=True)` renews a lease at three quarters of its length and gives up after three
tries within seconds: a server that restarts at that moment ends the run, or (not raising) leaves its GPUs to
others without a word. So the lease is kept here, over Prefect's client: the shortest that the server allows,
renewed four times as often, through any outage; and taken anew where the server has lost it. Slots of a killed
holder come back when its lease runs out: after a minute. Slots are not queued for: who asks first after a
release gets them, so a request for many waits while small ones keep coming.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.logging import get_logger
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from infra import devices
from infra.devices import GPU
from infra.errors import ConfigurationError, TransientError

REQUESTS_IN_FLIGHT = 256
LEASE_S = 60.0  # the server refuses less
_RENEW_S = 15.0
_POLL_S = 2.0
_REMIND_S = 60.0
Note = Callable[[str], None]


def default_limit(name: str) -> int:
    """What a limit is created with where nobody said: this machine's GPUs (1 on a CPU), or requests in flight."""
    return max(1, devices.gpus()) if name == GPU else REQUESTS_IN_FLIGHT


@contextlib.contextmanager
def held(name: str, slots: int, note: Note) -> Iterator[None]:
    """Hold `slots` of the limit `name` for the length of the `with`; creates a limit that is missing.

    `note` tells people what is waited for. Raises ConfigurationError where the limit is smaller than `slots`,
    TransientError where the server does not answer.
    """
    with get_client(sync_client=True) as client:
        with answering():
            lease = [_acquire(client, name, slots, note)]
        over = threading.Event()
        keep = contextvars.copy_context()
        keeper = threading.Thread(target=keep.run, args=(_keep, lease, name, slots, note, over), daemon=True)
        keeper.start()
        try:
            yield
        finally:
            over.set()
            keeper.join(_POLL_S)
            _release(client, lease, name)


def create_missing(client: SyncPrefectClient, name: str, limit: int) -> bool:
    """Create a limit unless there is one; says whether it did. What somebody set by hand stays."""
    try:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=limit))
    except ObjectAlreadyExists:
        return False
    return True


def _acquire(client: SyncPrefectClient, name: str, slots: int, note: Note) -> UUID:
    """Wait for the slots; the lease that holds them."""
    since = next_note = time.monotonic()
    while (lease := _try(client, name, slots)) is None:
        now = time.monotonic()
        if now >= next_note:
            next_note = now + _REMIND_S
            limit = client.read_global_concurrency_limit_by_name(name)
            note(_waiting(name, slots, limit.limit, limit.active_slots, now - since))
        time.sleep(_POLL_S)
    if next_note > since:
        note(f"has its {slots} of {name!r} after {time.monotonic() - since:.0f} s")
    return lease


def _try(client: SyncPrefectClient, name: str, slots: int) -> UUID | None:
    """A lease on the slots, or None where they are taken."""
    for _ in range(2):
        try:
            answer = client.increment_concurrency_slots_with_lease([name], slots, "concurrency", LEASE_S).json()
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.LOCKED:
                return None
            if error.response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
                raise _too_many(client, name, slots) from error
            raise
        if answer["limits"]:
            return UUID(answer["lease_id"])
        client.release_concurrency_slots_with_lease(UUID(answer["lease_id"]))  # a lease on nothing: no such limit
        create_missing(client, name, default_limit(name))
    raise TransientError(f"the limit {name!r} is deleted on the Prefect server as fast as it is created")


def _keep(lease: list[UUID], name: str, slots: int, note: Note, over: threading.Event) -> None:
    """Renew the lease until the work is over. `lease` is empty while it is lost."""
    while not over.wait(_RENEW_S if lease else _POLL_S):
        try:
            with _at_once(), get_client(sync_client=True) as client:
                if lease:
                    client.renew_concurrency_lease(lease[0], LEASE_S)
                elif taken := _try(client, name, slots):
                    lease.append(taken)
                    note(f"holds its {slots} of {name!r} again")
        except (httpx.HTTPError, ConfigurationError, TransientError) as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.GONE:
                lease.clear()
                note(f"the Prefect server has lost the hold on {slots} of {name!r}: goes on, and asks again")
            else:
                _log(f"the hold on {name!r} was not renewed, and will be tried again: {error!r}")


def _release(client: SyncPrefectClient, lease: list[UUID], name: str) -> None:
    if not lease:
        return
    try:
        with _at_once():
            client.release_concurrency_slots_with_lease(lease[0])
    except httpx.HTTPError as error:  # the work is done: nothing to fail for
        _log(f"the slots of {name!r} come back within a minute: the Prefect server does not answer ({error!r})")


def _waiting(name: str, slots: int, limit: int, active: int, waited_s: float) -> str:
    text = f"waits for {slots} of {name!r}: {active} of {limit} are taken by other runs"
    if waited_s < 2 * LEASE_S:
        return text
    return f"{text}, for {waited_s / 60:.0f} min (if none runs: `prefect gcl update {name} --active-slots 0`)"


def _too_many(client: SyncPrefectClient, name: str, slots: int) -> ConfigurationError:
    limit = client.read_global_concurrency_limit_by_name(name).limit
    if name == GPU:
        remedy = f"take fewer, or raise it with `distilflow bootstrap --gpus {slots}`"
    else:
        remedy = f"lower augmentation.concurrency, or raise it with `prefect gcl update {name} --limit {slots}`"
    return ConfigurationError(f"{slots} of {name!r} are asked for, and the Prefect server's limit is {limit}: {remedy}")


def _at_once() -> contextlib.AbstractContextManager[object]:
    """Prefect's client repeats a request for a minute; here the next renewal is the repetition."""
    return temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """A Prefect server that cannot be reached, in one sentence (TransientError)."""
    try:
        yield
    except httpx.TransportError as error:
        raise TransientError(f"the Prefect server at {PREFECT_API_URL.value()} does not answer: {error!r}") from error


def _log(text: str) -> None:
    get_logger("distilflow.limits").warning(text)
