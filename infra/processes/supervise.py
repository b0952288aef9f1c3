"""Supervised engines: DeepSpeed ranks and vLLM run as child processes of a task.

The contract: `spec.json` in; `events.jsonl` (progress, one JSON object a line) and `result.json` or
`error.json` out; standard output is a log and is never parsed. Between us and the engine stands
`infra.processes.guardian`, which ends the whole tree when we go, however we go. Exit codes become the errors of
`infra.errors`; a child that for too long neither reports anything nor moves any data is ended (stall watchdog).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from infra import settings
from infra.errors import (
    BY_EXIT_CODE,
    ConfigurationError,
    DistilflowError,
    OutOfMemoryError,
    TransientError,
    disk_full,
)
from infra.processes.environment import for_engine
from infra.processes.traffic import ALIVE_BYTES, Traffic
from infra.store import storage
from infra.store.claims import check_leases

Event = dict[str, Any]
_POLL_S = 0.2
_LOOK_S = 5.0  # between two looks at what is read and written
_TREE = "DISTILFLOW_PROCESS_TREE"
_LOG_LINES = 15
_SHORT = "distilflow"  # how folders of temporary files begin


@contextlib.contextmanager
def guarded(
    command: list[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    grace_s: float = 5.0,
    kill_first: bool = False,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command under a guardian for the length of the `with`; its whole tree is gone afterwards.

    `environment` is all that it is told (default: what we are).
    """
    read_end, write_end = os.pipe()
    tree = uuid.uuid4().hex
    guardian = [sys.executable, "-m", "infra.processes.guardian", "--death-fd", str(read_end), "--grace", str(grace_s)]
    guardian += ["--kill-first"] if kill_first else []
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*guardian, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**(os.environ if environment is None else environment), "PYTHONPATH": _python_path(), _TREE: tree},
            pass_fds=(read_end,),
            start_new_session=True,
        )
    os.close(read_end)
    try:
        yield process
    finally:
        os.close(write_end)  # the death pipe: works the same whether we return, raise or are killed
        if process.wait() < 0:
            _end_marked(tree)  # the guardian itself was killed, and could end nothing


def run_supervised(
    name: str,
    command: list[str],
    spec: Mapping[str, Any],
    *,
    on_event: Callable[[Event], None],
    env: Mapping[str, str] | None = None,
    stall_timeout_s: float = 900.0,
    quiet_s: float = 60.0,
    timeout_h: float | None = None,
    log_uri: str | None = None,
    on_log: Callable[[str], None] = lambda text: None,
    check: Callable[[], None] = check_leases,
) -> dict[str, Any]:
    """Run `command … FOLDER` to its end and return its `result.json`.

    The child finds `spec.json` in FOLDER, and is told of our environment what an engine needs, and `env`. Its whole
    log goes to `log_uri` in storage too, and to `on_log`. `on_event` hears of its events, and of
    `traffic` (bytes moved so far), ever more rarely, where there is none for `quiet_s`. Raises ConfigurationError (also
    after `timeout_h`), OutOfMemoryError or TransientError with the child's own sentence where it wrote one, and the end
    of its log where it did not; and what `check` raises, which is called all the while (LeaseLost where another has
    taken over what this is a part of).
    """
    settings.work_dir().mkdir(parents=True, exist_ok=True)
    remove_folders_of_the_dead(settings.work_dir())
    remove_folders_of_the_dead(Path(tempfile.gettempdir()), _SHORT)
    own = f"-{os.getpid()}-"
    scratch = tempfile.TemporaryDirectory(prefix=name + own, dir=settings.work_dir(), ignore_cleanup_errors=True)
    # for engines' sockets above all, whose path has 107 bytes: `scratch` may lie too deep
    inside = Path(tempfile.gettempdir()).name.startswith(f"{_SHORT}-")  # one of ours, which goes with all that is in it
    short = tempfile.TemporaryDirectory(prefix="" if inside else _SHORT + own, ignore_cleanup_errors=True)
    with scratch, short:
        folder = Path(scratch.name)
        environment = for_engine() | {"TMPDIR": short.name} | dict(env or {})
        (folder / "spec.json").write_text(json.dumps(spec))
        events = folder / "events.jsonl"
        events.touch()
        log = folder / "log.txt"
        oom_kills_before = _kernel_oom_kills()
        try:
            with guarded([*command, str(folder)], log, environment) as process, events.open() as stream:
                code = _follow(process, stream, on_event, stall_timeout_s, quiet_s, timeout_h, check)
            result = folder / "result.json"
            if code == 0 and result.exists():
                return json.loads(result.read_text())
            raise _failure(name, code, folder, log, oom_kills_before, log_uri)
        finally:
            _keep_log(name, log, log_uri)
            if log.exists() and (text := log.read_text(errors="replace")):
                on_log(text)


def _follow(
    process: subprocess.Popen[bytes],
    stream: Any,
    on_event: Callable[[Event], None],
    stall_timeout_s: float,
    quiet_s: float,
    timeout_h: float | None,
    check: Callable[[], None],
) -> int | None:
    """Pass on events until the process ends; None means that it stalled."""
    started = reported = alive = looked = time.monotonic()
    traffic, seen, quiet = Traffic(process.pid), 0, quiet_s
    partial = ""
    while True:
        check()
        ended = process.poll() is not None
        now = time.monotonic()
        for line in stream.readlines():
            partial += line
            if partial.endswith("\n"):
                on_event(json.loads(partial))
                partial = ""
                reported, alive, quiet = now, now, quiet_s
        if ended:
            return process.returncode
        if now - looked > min(_LOOK_S, stall_timeout_s / 4):
            looked = now
            if (moved := traffic.moved()) - seen >= ALIVE_BYTES:
                seen, alive = moved, now
            if now - reported > quiet and alive == now:
                on_event({"event": "traffic", "bytes": moved, "seconds": now - started})
                reported, quiet = now, 2 * quiet
        if now - alive > stall_timeout_s:
            return None
        if timeout_h is not None and now - started > timeout_h * 3600:
            raise ConfigurationError(f"it took longer than timeout_h = {timeout_h:g}: raise it; a rerun continues")
        time.sleep(_POLL_S)


def _failure(
    name: str, code: int | None, folder: Path, log: Path, oom_kills_before: int, log_uri: str | None
) -> Exception:
    kept = log_uri or settings.home() / "logs" / f"{name}.log"
    error = folder / "error.json"
    if error.exists():
        failure = json.loads(error.read_text())
        kind = BY_EXIT_CODE.get(failure["code"], TransientError)
        return kind(f"{name}: {failure['message']} (log: {kept})" if kind is TransientError else failure["message"])
    text = log.read_text(errors="replace")
    tail = "\n".join(text.splitlines()[-_LOG_LINES:])
    if code is None:
        return TransientError(
            f"{name} reported nothing for too long, read and wrote nothing either, and was ended; log: {kept}\n{tail}"
        )
    if "No space left on device" in text:
        return disk_full(settings.home())
    if _kernel_oom_kills() > oom_kills_before:
        return OutOfMemoryError(
            f"{name} was killed by the kernel because memory ran out: use a smaller micro-batch, "
            f"a higher ZeRO stage or fewer processes; log: {kept}"
        )
    return TransientError(f"{name} ended with exit code {code}; log: {kept}\n{tail}")


def owner_of(folder: Path) -> int | None:
    """The process whose scratch folder it is: names end in its id and a random part."""
    owner = folder.name.split("-")[-2]
    return int(owner) if owner.isdigit() else None


def remove_folders_of_the_dead(work: Path, name: str = "*") -> None:
    """Remove the scratch folders in `work` whose run was killed."""
    for folder in work.glob(f"{name}-*-*"):
        owner = owner_of(folder)
        if owner is not None and not psutil.pid_exists(owner):
            shutil.rmtree(folder, ignore_errors=True)


def _end_marked(tree: str) -> None:
    """Kill what still carries the mark of a tree in its environment."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_TREE) == tree:
                process.kill()


def _kernel_oom_kills() -> int:
    """How often the kernel has killed for memory, on this machine and in this cgroup (0 where it does not say)."""
    total = 0
    for counters in (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events")):
        with contextlib.suppress(OSError):
            total += sum(
                int(line.split()[1]) for line in counters.read_text().splitlines() if line.startswith("oom_kill ")
            )
    return total


def _keep_log(name: str, log: Path, uri: str | None) -> None:
    """The last log of its kind beside the local state, and in storage, where people of another machine find it."""
    if not log.exists():
        return
    kept = settings.home() / "logs" / f"{name}.log"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        shutil.copyfile(log, kept)
    if uri is not None:
        with contextlib.suppress(DistilflowError):  # it is the smaller loss
            storage.upload(log, uri)


def _python_path() -> str:
    """Children import the same `infra` and `tasks` as we do, also when the product is not installed."""
    here = str(Path(__file__).parents[2])
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
