"""Who of a home's processes was told a secret: looked for in their environments and command lines while they live."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from tests.support.processes import of_home, words

PROGRAMS = {  # by a part of the command line; a guardian is told what it starts
    "flows.commands.main": "run",
    "tasks.llm.litellm_process": "provider",
    "tasks.demo.llm_server": "demo LLM",
    "tasks.train.program": "training",
    "tasks.logits.program": "scoring",
    "tasks.evaluate.heldout.program": "evaluation",
    "prefect server": "Prefect",
    "weed": "storage",
}


def _program(process: psutil.Process) -> str:
    """Which of them it is, or belongs to: a compiler that an engine asks is the engine's."""
    with contextlib.suppress(psutil.Error):
        for member in [process, *process.parents()]:
            for part, name in PROGRAMS.items():
                if part in words(member):
                    return name
    return words(process)


class Overheard:
    """`told[name of a secret]`: the programs that had it in their environment; `shown`: in their arguments."""

    def __init__(self, secrets: Mapping[str, str]):
        self.secrets = dict(secrets)
        self.told: dict[str, set[str]] = {name: set() for name in secrets}
        self.shown: set[str] = set()
        self.seen: set[str] = set()

    def look(self, home: Path) -> None:
        for process in of_home(home):
            line = words(process)
            program = _program(process)
            with contextlib.suppress(psutil.Error):
                values = "\n".join(process.environ().values())
                self.seen.add(program)
                for name, secret in self.secrets.items():
                    if secret in values:
                        self.told[name].add(program)
                    if secret in line:
                        self.shown.add(program)


@contextlib.contextmanager
def overheard(home: Path, secrets: Mapping[str, str]) -> Iterator[Overheard]:
    """Looks twice a second for the length of the `with`."""
    found, over = Overheard(secrets), threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            found.look(home)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
