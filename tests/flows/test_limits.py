"""GPU slots against a real Prefect server: strict, freed after a kill, kept over a restart of the server."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

from infra.errors import ConfigurationError
from infra.orchestration import limits
from infra.orchestration.limits import held
from tests.support.own_server import OwnServer, own_server
from tests.support.wait import wait_for

_HOLDER = """
import sys, time
from infra.orchestration.limits import held
name, slots, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with held(name, slots, lambda text: print(text, flush=True)):
    print("in", time.time(), flush=True)
    time.sleep(seconds)
    print("out", time.time(), flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[OwnServer]:
    with own_server(tmp_path_factory.mktemp("limits"), database) as running:
        yield running


def _holder(server: OwnServer, name: str, slots: int, seconds: float) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", _HOLDER, name, str(slots), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=server.env)


def _times(output: str) -> tuple[float, float]:
    found = dict(line.split() for line in output.splitlines() if line.startswith(("in ", "out ")))
    return float(found["in"]), float(found["out"])


def _active(name: str) -> int:
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(name).active_slots


def _set(name: str, limit: int) -> None:
    with get_client(sync_client=True) as client:
        limits.create_missing(client, name, limit)
        client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(limit=limit))


@pytest.mark.usefixtures("server")
def test_a_missing_limit_is_created_and_the_slots_come_back() -> None:
    notes: list[str] = []
    began = time.monotonic()
    with held("llm-fresh", 64, notes.append):
        assert _active("llm-fresh") == 64
    print(f"held() took {time.monotonic() - began:.3f} s with the creation")
    assert _active("llm-fresh") == 0
    began = time.monotonic()
    for _ in range(10):
        with held("llm-fresh", 64, notes.append):
            pass
    overhead_s = (time.monotonic() - began) / 10
    print(f"overhead_s {overhead_s:.3f}")
    assert overhead_s < 2
    assert notes == []


@pytest.mark.usefixtures("server")
def test_a_limit_set_by_hand_is_left_and_more_than_it_is_refused_in_a_sentence() -> None:
    _set("gpu", 3)
    with get_client(sync_client=True) as client:
        assert not limits.create_missing(client, "gpu", 8)
    with (
        pytest.raises(ConfigurationError, match="limit is 3: take fewer, or raise it with `distilflow bootstrap"),
        held("gpu", 4, print),
    ):
        pytest.fail("the body ran without its slots")
    assert _active("gpu") == 0


def test_holders_never_overlap_and_who_waits_says_for_what(server: OwnServer) -> None:
    _set("overlap", 2)
    running = [_holder(server, "overlap", 2, 3) for _ in range(3)]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [error for _, error in outputs] == [""] * 3
    spans = sorted(_times(output) for output, _ in outputs)
    for (_, out), (into, _) in itertools.pairwise(spans):
        assert into >= out
    said = "".join(output for output, _ in outputs)
    assert "waits for 2 of 'overlap': 2 of 2 are taken by other runs" in said
    assert "has its 2 of 'overlap' after" in said


def test_a_restart_of_the_server_neither_ends_a_holder_nor_gives_its_slots_away_but_those_of_a_killed_one(
    server: OwnServer,
) -> None:
    """One wait of a lease's length for both."""
    _set("killed", 1)
    _set("restart", 1)
    lost, holder = _holder(server, "killed", 1, 600), _holder(server, "restart", 1, 75)  # longer than a lease
    assert lost.stdout is not None
    assert lost.stdout.readline().startswith("in ")
    assert holder.stdout is not None
    into = float(holder.stdout.readline().split()[1])
    lost.kill()
    lost.wait()
    killed = time.time()
    server.kill()
    time.sleep(10)
    server.start()
    heir, waiter = _holder(server, "killed", 1, 0), _holder(server, "restart", 1, 0)
    output, error = holder.communicate(timeout=200)
    assert holder.returncode == 0, error
    out = float(output.split()[-1])
    assert out - into >= 75
    next_into, _ = _times(waiter.communicate(timeout=60)[0])
    assert next_into >= out, "the slot was given away while its holder still worked"
    came_back, _ = _times(heir.communicate(timeout=60)[0])
    assert came_back - killed < limits.LEASE_S + 15


def test_a_hold_that_the_server_forgot_is_taken_anew_and_said(
    server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an outage longer than a lease, or on a server that keeps its leases in memory."""
    monkeypatch.setattr(limits, "_RENEW_S", 1.0)
    _set("forgotten", 1)
    notes: list[str] = []
    with held("forgotten", 1, notes.append):
        (lease,) = (server.home / "prefect" / "concurrency_leases").glob("*-*.json")
        lease.unlink()
        with get_client(sync_client=True) as client:
            client.update_global_concurrency_limit("forgotten", GlobalConcurrencyLimitUpdate(active_slots=0))
        wait_for(lambda: len(notes) == 2)
        assert _active("forgotten") == 1
    assert _active("forgotten") == 0
    assert notes == [
        "the Prefect server has lost the hold on 1 of 'forgotten': goes on, and asks again",
        "holds its 1 of 'forgotten' again",
    ]
