"""Engines side by side: each on its own part, one's death is the others' work, and what all would meet ends all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.errors import ConfigurationError, OutOfMemoryError, TransientError
from infra.processes.guardian import is_alive
from infra.processes.shares import Share
from infra.processes.side_by_side import run_side_by_side
from infra.store.claims import Claims, LeaseLost, working_under
from tests.support.wait import wait_for

pytestmark = pytest.mark.usefixtures("home")

# What an engine does is told by its variable WHAT; it leaves its id in FOLDER first.
ENGINE = """
import os, pathlib, signal, sys, time
from infra.errors import ConfigurationError, TransientError
from infra.processes import child

def main(spec, reporter):
    what = os.environ["WHAT"]
    pathlib.Path(spec["folder"], f"{os.getpid()}.pid").write_text(what)
    print("here is", what)
    reporter.event("at work")
    others = lambda: len(list(pathlib.Path(spec["folder"]).glob("*.pid")))
    while others() < spec["engines"]:
        time.sleep(0.01)
    if what == "wait":
        time.sleep(600)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "fail":
        raise TransientError("the device fell off the bus")
    if what == "memory":
        raise MemoryError("no room")
    if what == "wrong":
        raise ConfigurationError("say k")
    return {"cores": sorted(os.sched_getaffinity(0)), "devices": os.environ.get("CUDA_VISIBLE_DEVICES")}

child.run(main, pathlib.Path(sys.argv[-1]))
"""


class Ran:
    """Engines that did as they were told, and what was heard of them."""

    def __init__(self, folder: Path, *whats: str, shares: list[Share] | None = None):
        script = folder / "engine.py"
        script.write_text(ENGINE)
        self.folder = folder
        self.events: list[tuple[int, dict[str, Any]]] = []
        self.losses: list[tuple[int, str]] = []
        self.logs: list[str] = []
        self.error: BaseException | None = None
        self.results: list[dict[str, Any]] = []
        os.environ["DISTILFLOW_PASS"] = "WHAT"
        given = shares or [Share() for _ in whats]
        try:
            self.results = run_side_by_side(
                "test",
                [sys.executable, str(script)],
                {"folder": str(folder), "engines": len(given)},
                [
                    Share({**share.environment, "WHAT": what}, share.cores)
                    for share, what in zip(given, whats, strict=True)
                ],
                on_event=lambda engine, event: self.events.append((engine, event)),
                on_loss=lambda engine, error: self.losses.append((engine, str(error))),
                on_log=self.logs.append,
            )
        except Exception as error:
            self.error = error
        finally:
            del os.environ["DISTILFLOW_PASS"]

    @property
    def left(self) -> list[int]:
        """Engines that still run."""
        return [int(path.stem) for path in self.folder.glob("*.pid") if psutil.pid_exists(int(path.stem))]


def test_each_engine_runs_on_its_own_part_and_all_results_come_back(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    shares = [Share({"CUDA_VISIBLE_DEVICES": str(n)}, frozenset({cores[n % len(cores)]})) for n in range(2)]
    ran = Ran(tmp_path, "work", "work", shares=shares)
    assert ran.error is None
    found = sorted(ran.results, key=lambda result: result["devices"])
    assert found == [{"cores": sorted(share.cores), "devices": str(n)} for n, share in enumerate(shares)]
    assert sorted(engine for engine, _ in ran.events) == [0, 1]
    assert set(os.sched_getaffinity(0)) == set(cores)
    assert ran.logs == ["here is work\n"] * 2


def test_the_death_of_one_is_told_in_its_own_words_and_the_others_go_on(tmp_path: Path) -> None:
    ran = Ran(tmp_path, "die", "work", "fail")
    assert ran.error is None
    assert len(ran.results) == 1
    (_, killed), (_, failed) = sorted(ran.losses)
    assert killed.startswith("test-1 ended with exit code 137")
    assert failed.startswith("test-3: the device fell off the bus")


def test_when_all_fail_the_last_ones_error_is_raised(tmp_path: Path) -> None:
    ran = Ran(tmp_path, "fail", "fail")
    assert isinstance(ran.error, TransientError)
    assert "the device fell off the bus" in str(ran.error)
    assert len(ran.losses) == 1


@pytest.mark.parametrize(("what", "error"), [("memory", OutOfMemoryError), ("wrong", ConfigurationError)])
def test_what_all_would_meet_ends_all_at_once(tmp_path: Path, what: str, error: type[Exception]) -> None:
    began = time.monotonic()
    ran = Ran(tmp_path, "wait", what, "wait")
    assert isinstance(ran.error, error)
    assert time.monotonic() - began < 60
    assert ran.left == []
    assert ran.losses == []


def test_a_stage_that_was_taken_over_ends_its_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease is that of the thread that asked for the engines."""
    held = Claims("s3://b/")
    monkeypatch.setattr(held, "check", lambda name: _lost_once_all_are_up(tmp_path, 2))
    with working_under(held, "a piece"):
        ran = Ran(tmp_path, "wait", "wait")
    assert isinstance(ran.error, LeaseLost)
    assert ran.left == []


def _lost_once_all_are_up(folder: Path, engines: int) -> None:
    if len(list(folder.glob("*.pid"))) == engines:
        raise LeaseLost("another has taken over")


@pytest.mark.parametrize("victim", ["holder", "program"])
def test_sigkill_of_whoever_started_them_leaves_no_process(tmp_path: Path, victim: str) -> None:
    """Engines of a program that is supervised itself: a guardian above, and one above each engine."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import os, pathlib, sys
from infra.processes import child

def main(spec, reporter):
    from tests.integration.test_side_by_side import Ran
    pathlib.Path({str(tmp_path)!r}, "program").write_text(str(os.getpid()))
    raise Ran(pathlib.Path({str(tmp_path)!r}), "wait", "wait").error

child.run(main, pathlib.Path(sys.argv[-1]))
""")
    holder = f"""
import sys
from infra.processes.supervise import run_supervised
run_supervised("test", [sys.executable, {str(program)!r}], {{}}, on_event=print)
"""
    process = subprocess.Popen([sys.executable, "-c", holder], cwd=Path(__file__).parents[2])
    wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2, alive=[process])
    tree = psutil.Process(process.pid).children(recursive=True)
    assert len(tree) == 2 + 2 * 2  # each with its guardian
    os.kill(process.pid if victim == "holder" else int((tmp_path / "program").read_text()), signal.SIGKILL)
    process.wait(timeout=30)
    wait_for(lambda: not any(is_alive(one) for one in tree))
