"""A run as in production is killed and cancelled at every stage, and must come out as one that nothing happened to."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.orchestration.remote_run import answer_of
from infra.services.server import wait_until_gone
from infra.services.start import kept
from infra.store import storage
from infra.store.artifacts import Record, artifact_at, read_record
from tests.support.cluster import SMALL, Cluster, cluster, kill, stage_of
from tests.support.wait import wait_for

STAGES = ("sft", "logits", "sft_control", "kd", "evaluate")
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("production"), database) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(production: Cluster) -> dict[str, Any]:
    """What it has to come out as."""
    run = production.run("distill/demo", **SMALL)
    assert production.wait_for_end(run) == "Completed"
    outcome: dict[str, Any] = answer_of(run)["result"]
    return outcome


def _kill_flow(production: Cluster) -> None:
    kill(production.flows("cpu"))


def _kill_cpu_worker(production: Cluster) -> None:
    production.kill_worker("cpu")
    production.start_worker("cpu", "chaos")


def _kill_gpu_worker(production: Cluster) -> None:
    production.kill_worker("gpu")
    production.start_worker("gpu", "chaos")


def _kill_rank(production: Cluster) -> None:
    wait_for(lambda: _named(production, " -m infra.processes.program tasks.train.program"))
    kill(_named(production, " -m infra.processes.program tasks.train.program")[-1:])


def _kill_engine_core(production: Cluster) -> None:
    wait_for(lambda: _named(production, "EngineCore"))
    kill(_named(production, "EngineCore"))


def _restart_server(production: Cluster) -> None:
    production.kill_server("prefect")
    time.sleep(5)
    production.start_servers()


def _storage_away(production: Cluster) -> None:
    production.kill_server("seaweedfs")
    time.sleep(60)
    production.start_servers()


def _pause_a_stage_beyond_its_lease(production: Cluster) -> None:
    """Stopped until the run has asked for the stage anew, then woken over its successor: it has to leave."""
    flows = production.flows("gpu")
    paused = [member for flow in flows for member in [flow, *flow.children(recursive=True)]]
    asked = len(production.stages())
    for process in paused:
        process.suspend()
    try:
        wait_for(lambda: len(production.stages()) > asked, 400)
    finally:
        for process in paused:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
    assert wait_until_gone(paused, 120) == []


def _named(production: Cluster, *words: str) -> list[Any]:
    return [p for p in production.engines() if all(word in " ".join([p.name(), *p.cmdline()]) for word in words)]


KILLS: dict[str, tuple[str, Callable[[Cluster], None]]] = {
    "flow process SIGKILL": ("sft", _kill_flow),
    "DeepSpeed rank SIGKILL": ("sft", _kill_rank),
    "vLLM EngineCore SIGKILL": ("logits", _kill_engine_core),
    "gpu worker SIGKILL": ("sft_control", _kill_gpu_worker),
    "stage SIGSTOP for its lease": ("sft_control", _pause_a_stage_beyond_its_lease),
    "cpu worker SIGKILL": ("kd", _kill_cpu_worker),
    "Prefect server restart": ("kd", _restart_server),
    "storage away for 60 s": ("evaluate", _storage_away),
}


def test_cancelled_and_killed_at_every_stage_it_comes_out_the_same(
    production: Cluster, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    production.stop_workers()
    monkeypatch.setenv("DISTILFLOW_BUCKET", "chaos")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # an engine in processes of its own, as on a GPU
    for pool in ("cpu", "gpu"):
        production.start_worker(pool, "chaos")
    finished: dict[str, Record] = {}

    run = production.run("distill/demo", **SMALL)
    wait_for(lambda: production.engines())  # the agents at work
    run = _cancelled(production, run, "augment")
    for stage in STAGES:
        _in_stage(production, stage)
        _remember(finished)
        run = _cancelled(production, run, stage)
        for name, (where, happens) in KILLS.items():
            if where == stage:
                _in_stage(production, stage)
                _remember(finished)
                happens(production)
                run = _after(production, run, name)
    assert production.wait_for_end(run, 600) == "Completed"
    outcome = answer_of(run)["result"]
    _remember(finished)
    assert production.engines() == []

    for uri, before in finished.items():
        now = read_record(uri)
        assert now is not None
        assert now.started_at == before.started_at, f"{uri} was made again"
    assert outcome["variants"].keys() == undisturbed["variants"].keys()
    for variant, numbers in undisturbed["variants"].items():
        for metric in numbers.keys() - {"intervals"}:
            assert outcome["variants"][variant][metric] == pytest.approx(numbers[metric], rel=2e-3), (variant, metric)
    for stage in ("augment", "sft", "sft_control", "kd"):
        _same(undisturbed["stages"][stage]["uri"], outcome["stages"][stage]["uri"])


def _in_stage(production: Cluster, stage: str) -> None:
    """Wait until the stage's engine runs."""

    def runs() -> bool:
        current = [s for s in production.stages() if stage_of(s) == stage and s.state and s.state.is_running()]
        return bool(current and production.engines())

    wait_for(runs, 300)


def _cancelled(production: Cluster, run: Any, stage: str) -> Any:
    """Cancel the run, see everything end within a minute, and start it again."""
    production.cancel(run)
    began = time.monotonic()
    assert production.wait_for_end(run, 60) == "Cancelled"
    wait_for(lambda: production.engines() == [] and not _stages_under_way(production), 60)
    print(f"cancelled in {stage:<12} everything gone after {time.monotonic() - began:4.0f} s", flush=True)
    return production.run("distill/demo", **SMALL)


def _after(production: Cluster, run: Any, name: str) -> Any:
    """What the run is by now: still the same one, or started again where it died."""
    began = time.monotonic()
    time.sleep(3)
    wait_for(lambda: kept(production.home).keys() == {"prefect", "seaweedfs"})
    if name == "flow process SIGKILL":
        assert production.wait_for_end(run, 60) == "Crashed"
    if name in ("flow process SIGKILL", "cpu worker SIGKILL"):
        wait_for(lambda: production.engines() == [] or production.flows("cpu"), 60)
    state = production.read(run).state
    if state is None or not state.is_final():
        print(f"{name:<28} goes on", flush=True)
        return run
    assert name == "flow process SIGKILL"
    wait_for(lambda: production.engines() == [] and not _stages_under_way(production), 60)
    print(f"{name:<28} everything gone after {time.monotonic() - began:4.0f} s, started again", flush=True)
    return production.run("distill/demo", **SMALL)


def _stages_under_way(production: Cluster) -> list[Any]:
    return [stage for stage in production.stages() if stage.state and not stage.state.is_final()]


def _remember(finished: dict[str, Record]) -> None:
    """The records of what is finished by now."""
    for key in list(storage.keys("s3://chaos/")):
        if key.endswith("/record.json"):
            uri = "s3://chaos/" + key.removesuffix("record.json")
            if uri not in finished and (record := read_record(uri)):
                finished[uri] = record


def _same(one: str, other: str) -> None:
    """Two artifacts of one kind in two buckets: the same rows, or the same loss curve. (A model's card tells times.)"""
    if "/augment/" in one:
        assert artifact_at(one).sha256 == artifact_at(other).sha256
        return
    curves = [json.loads(storage.get(uri + "curve.json") or b"") for uri in (one, other)]
    assert [loss for _, loss in curves[0]] == pytest.approx([loss for _, loss in curves[1]], rel=1e-3)
