"""A small process between a task and its engine, so that no engine outlives its task.

`python -m infra.processes.guardian [--death-fd N] [--grace S] [--kill-first] -- COMMAND …` runs COMMAND in its own
session and exits with its code. When the death pipe closes (the parent exited or was SIGKILLed), on TERM or INT, and
when COMMAND ends, it ends everything that COMMAND started: TERM, then KILL after the grace (with --kill-first COMMAND
itself gets KILL at once: it has nothing to say about how its children end). As a *child
subreaper* it stays the ancestor of every process of the tree, also of those that changed session (torchrun's
ranks) or outlived their parent (vLLM's EngineCore, vllm#55510), so none can hide.

Standard library and psutil only: it has to start in milliseconds.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
KILLED = 137
_ACCOUNTS_S = 5.0


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _in_child() -> None:
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # if the guardian itself is killed, the launcher goes too


def end_tree(grace_s: float) -> None:
    """End all descendants of this process: TERM, wait, KILL.

    Python's resource trackers are left a while longer: they unlink the shared memory of those who had to be killed,
    and end by themselves after them.
    """
    deadline = time.monotonic() + grace_s
    me = psutil.Process()
    signalled: set[int] = set()
    while alive := [p for p in me.children(recursive=True) if is_alive(p)]:
        for process in alive:
            try:
                if time.monotonic() > deadline + (_ACCOUNTS_S if is_tracker(process) else 0.0):
                    process.kill()
                elif process.pid not in signalled:
                    process.terminate()
                    signalled.add(process.pid)
            except psutil.NoSuchProcess:
                continue
        _reap()
        time.sleep(0.05)


def is_tracker(process: psutil.Process) -> bool:
    """Whether it is Python's own, which ends with whoever started it."""
    return any("multiprocessing.resource_tracker" in word for word in process.cmdline())


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _reap() -> None:
    """Collect orphans that were re-parented to us."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def guard(command: list[str], death_fd: int | None, grace_s: float, kill_first: bool = False) -> int:
    """Run the command; return its exit code (128 + signal where a signal ended it)."""
    stop = False

    def on_signal(_signum: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, on_signal)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(command, preexec_fn=_in_child)
    while not stop and child.poll() is None:
        if death_fd is None:
            time.sleep(0.1)
        elif select.select([death_fd], [], [], 0.1)[0]:
            break  # nothing is ever written: readable means closed
    code = child.poll()
    if code is None and kill_first:
        child.kill()
    end_tree(grace_s)
    if code is None:
        return KILLED
    return code if code >= 0 else 128 - code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--death-fd", type=int)
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("--kill-first", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    sys.exit(guard([word for word in args.command if word != "--"], args.death_fd, args.grace, args.kill_first))


if __name__ == "__main__":
    main()
