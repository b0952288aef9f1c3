"""Supervision: results and errors come back, and no process survives its task, however the task ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.errors import ConfigurationError, OutOfMemoryError, TransientError
from infra.processes.supervise import guarded, run_supervised
from tests.support.wait import wait_for

pytestmark = pytest.mark.usefixtures("home")

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) > 2 and sys.argv[2] == "parent":
    # like torchrun's ranks: a session of their own, deaf to TERM
    subprocess.Popen([sys.executable, sys.argv[0], sys.argv[1], "rank"], start_new_session=True)
open(os.path.join(sys.argv[1], f"{sys.argv[2]}.pid"), "w").write(str(os.getpid()))
time.sleep(600)
"""


HOLDS_MEMORY = """
import signal, sys, time
from multiprocessing.shared_memory import SharedMemory
signal.signal(signal.SIGTERM, signal.SIG_IGN)
memory = SharedMemory(create=True, size=4096)
print(memory.name, flush=True)
time.sleep(600)
"""


def _script(folder: Path, text: str) -> str:
    path = folder / "child.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


def _pids(folder: Path) -> list[int]:
    written = [folder / f"{name}.pid" for name in ("parent", "rank")]
    wait_for(lambda: all(path.exists() and path.read_text() for path in written))
    return [int(path.read_text()) for path in written]


def _gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def _run(folder: Path, text: str, events: list[dict[str, Any]] | None = None, **options: Any) -> dict[str, Any]:
    program = f"from infra.processes import child; import pathlib, sys\n{textwrap.dedent(text)}\n"
    program += "child.run(main, pathlib.Path(sys.argv[-1]))"
    command = [sys.executable, _script(folder, program)]
    on_event = (events if events is not None else []).append
    return run_supervised("test", command, {"x": 20}, on_event=on_event, **options)


def test_shared_memory_of_a_process_that_had_to_be_killed_is_given_back(tmp_path: Path) -> None:
    """As vLLM's EngineCore holds it, 160 MiB each."""
    log = tmp_path / "log.txt"
    with guarded([sys.executable, _script(tmp_path, HOLDS_MEMORY)], log, grace_s=0.3):
        wait_for(lambda: log.exists() and log.read_text().endswith("\n"))
        memory = Path("/dev/shm") / log.read_text().splitlines()[0]
        assert memory.exists()
    assert not memory.exists()


def test_result_and_events_come_back(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    result = _run(
        tmp_path,
        """
        def main(spec, reporter):
            for step in range(3):
                reporter.progress(step + 1, 3)
            return {"y": spec["x"] + 1}
        """,
        events,
    )
    assert result == {"y": 21}
    assert events[-1]["done"] == 3


def test_a_child_that_moves_data_is_alive_and_people_are_told(tmp_path: Path) -> None:
    """As one that downloads a model for longer than the longest wait for a report."""
    events: list[dict[str, Any]] = []
    result = _run(
        tmp_path,
        """
        import time
        def main(spec, reporter):
            for _ in range(8):
                (reporter.folder / "download").write_bytes(bytes(20 << 20))
                time.sleep(0.6)
            return {"y": 1}
        """,
        events,
        stall_timeout_s=2.4,
        quiet_s=1.0,
    )
    assert result == {"y": 1}
    told = [event for event in events if event["event"] == "traffic"]
    assert 1 <= len(told) <= 3  # ever more rarely
    assert told[-1]["bytes"] >= 20 << 20


def test_a_child_that_only_computes_and_logs_is_ended(tmp_path: Path) -> None:
    """As a rank whose neighbour hangs: a collective spins, and its watchdog writes a line now and then."""
    with pytest.raises(TransientError, match="reported nothing for too long, read and wrote nothing either"):
        _run(
            tmp_path,
            """
            import time
            def main(spec, reporter):
                said = began = time.monotonic()
                while time.monotonic() - began < 60:
                    if time.monotonic() - said > 0.5:
                        said = time.monotonic()
                        print("still waiting", flush=True)
            """,
            stall_timeout_s=3,
        )


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("from infra.errors import ConfigurationError; raise ConfigurationError('say k')", ConfigurationError, "say k"),
        ("raise MemoryError('no room')", OutOfMemoryError, "micro-batch"),
        ("raise RuntimeError('CUDA out of memory. Tried')", OutOfMemoryError, "micro-batch"),
        ("raise OSError(28, 'full', '/x')", ConfigurationError, "disk that holds /x is full"),
        ("raise KeyError('lost')", ConfigurationError, "KeyError: 'lost' .it would fail again"),
        ("raise RuntimeError('lost')", TransientError, "RuntimeError: lost"),
        ("raise ConnectionResetError('lost')", TransientError, "ConnectionResetError: lost"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", TransientError, "exit code 137"),
    ],
)
def test_each_way_to_fail_is_its_own_error(tmp_path: Path, body: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        _run(tmp_path, f"def main(spec, reporter):\n    {body}", stall_timeout_s=4.0)


def test_leaving_the_with_ends_a_stubborn_tree(tmp_path: Path) -> None:
    command = [sys.executable, _script(tmp_path, STUBBORN), str(tmp_path), "parent"]
    with guarded(command, tmp_path / "log", grace_s=0.5):
        pids = _pids(tmp_path)
        assert not _gone(pids)
    assert _gone(pids)


@pytest.mark.parametrize("victim", ["holder", "guardian"])
def test_sigkill_of_the_task_or_of_the_guardian_leaves_no_process(tmp_path: Path, victim: str) -> None:
    holder = f"""
    import pathlib, sys, time
    from infra.processes.supervise import guarded
    command = [sys.executable, {_script(tmp_path, STUBBORN)!r}, {str(tmp_path)!r}, "parent"]
    with guarded(command, pathlib.Path({str(tmp_path / "log")!r}), grace_s=0.5) as process:
        pathlib.Path({str(tmp_path / "guardian.pid")!r}).write_text(str(process.pid))
        process.wait()
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(holder)])
    pids = _pids(tmp_path)
    wait_for((tmp_path / "guardian.pid").exists)
    guardian = int((tmp_path / "guardian.pid").read_text())
    os.kill(process.pid if victim == "holder" else guardian, signal.SIGKILL)
    process.wait(timeout=20)
    wait_for(lambda: _gone([*pids, guardian]))
    assert _gone([*pids, guardian])


def test_what_takes_longer_than_its_timeout_is_ended_and_not_retried(tmp_path: Path) -> None:
    text = """
        def main(spec, reporter):
            import time
            reporter.event("started")
            time.sleep(600)
    """
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match="took longer than timeout_h = 0.001: raise it"):
        _run(tmp_path, text, timeout_h=0.001)
    assert time.monotonic() - began < 60
