"""Engines side by side have a part of the machine each, whatever names its devices have, and none of another's."""

from __future__ import annotations

import os

import pytest

from infra import devices
from infra.errors import ConfigurationError
from infra.processes.shares import bind_ranks, engines_on, shares

UUIDS = [f"GPU-5e1a7c2{n}-0000-4c1d-9d5e-6f1f2a3b4c5d" for n in range(4)]
MIG = [f"MIG-8c2f11a{n}-7d0e-5f6a-b1c2-93d4e5f60718" for n in range(2)]


@pytest.mark.parametrize(
    ("named", "each", "parts"),
    [
        ("0,1,2,3", 1, ["0", "1", "2", "3"]),
        ("6, 4,7,5", 2, ["6,4", "7,5"]),
        ("0,1,2", 2, ["0,1"]),
        (",".join(UUIDS), 2, [",".join(UUIDS[:2]), ",".join(UUIDS[2:])]),
        (",".join(MIG), 1, MIG),
        ("2,3,-1,5", 1, ["2", "3"]),  # CUDA sees nothing after the first that is none
    ],
)
def test_each_engine_sees_its_own_devices_alone(
    named: str, each: int, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    engines = engines_on(devices.gpus(), 0, each, "scoring.engines")
    given = shares(engines, each)
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in given] == parts
    assert not any(share.cores for share in given)


def test_the_drivers_devices_are_numbered_where_none_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "listdir", lambda path: ["0000:17:00.0", "0000:65:00.0"])
    assert devices.visible() == ["0", "1"]
    assert [share.environment for share in shares(2)] == [{"CUDA_VISIBLE_DEVICES": name} for name in ("0", "1")]


@pytest.mark.parametrize(
    ("gpus", "wanted", "each", "engines"),
    [(8, 0, 1, 8), (8, 0, 4, 2), (8, 0, 3, 2), (8, 3, 2, 3), (2, 0, 4, 1), (0, 0, 4, 1), (0, 3, 1, 3)],
)
def test_as_many_engines_as_fit_or_as_were_asked_for(gpus: int, wanted: int, each: int, engines: int) -> None:
    assert engines_on(gpus, wanted, each, "scoring.engines") == engines


def test_more_engines_than_fit_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="scoring.engines is 3, each on 4 of the 8 GPUs here: at most 2 fit"):
        engines_on(8, 3, 4, "scoring.engines")


@pytest.mark.parametrize(
    ("cores", "engines", "parts"),
    [
        (range(8), 2, [{0, 1, 2, 3}, {4, 5, 6, 7}]),
        (range(4, 9), 2, [{4, 5}, {6, 7}]),
        ((1, 3), 2, [{1}, {3}]),
        (range(2), 3, [{0}, {1}, {0}]),
    ],
)
def test_engines_on_a_cpu_have_cores_of_their_own_as_far_as_there_are_any(
    cores: range, engines: int, parts: list[set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(cores))
    given = shares(engines)
    assert [set(share.cores) for share in given] == parts
    for share in given:
        assert share.environment["OMP_NUM_THREADS"] == str(len(share.cores))
        assert share.environment["VLLM_CPU_OMP_THREADS_BIND"] == ",".join(map(str, sorted(share.cores)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert {share.environment["OMP_NUM_THREADS"] for share in shares(engines)} == {"1"}


def test_processes_of_one_engine_on_a_cpu_have_parts_of_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert [share.environment["VLLM_CPU_OMP_THREADS_BIND"] for share in shares(2, 2)] == ["0,1|2,3", "4,5|6,7"]
    bind_ranks(1)
    assert "VLLM_CPU_OMP_THREADS_BIND" not in os.environ  # one alone is where vLLM puts it
    bind_ranks(4)
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "0,1|2,3|4,5|6,7"
    bind_ranks(2)
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "0,1|2,3|4,5|6,7"  # what is set stays
