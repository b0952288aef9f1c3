"""The command line: `distilflow run`, `estimate`, `export`, `publish`, `gc`, `up`, `down`, `status`, `worker` …

Environment that Prefect reads when it is imported is set here first, which is why the flow is imported late.
"""

from __future__ import annotations

import errno
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from cyclopts import App, CycloptsError

from flows.commands import artifacts, servers
from flows.commands.mistakes import sentences
from infra import settings
from infra.errors import DistilflowError, disk_full, is_disk_full, unusable_home
from infra.printable import printable
from infra.processes import interruption
from infra.processes.program import lean_imports

_NOT_OURS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
)  # what a folder of others answers

app = App(
    name="distilflow",
    help="Distil a large teacher into a small student, on your own data.",
    version=lambda: metadata.version("distilflow"),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)
for command in (
    *(servers.up, servers.down, servers.status, servers.bootstrap, servers.worker),
    *(artifacts.estimate, artifacts.prompts, artifacts.export, artifacts.publish, artifacts.gc),
    servers.metrics,
):
    app.command(command)


def main() -> None:
    """Entry point: one clear sentence and an exit code where something is wrong, never a traceback for a user error."""
    try:
        _quiet_libraries()
        if sys.argv[1:2] in (["run"], ["sweep"], ["experiment"]):
            register_flow(sys.argv[1])
        app(exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail("; ".join(sentences(app, error)), 2)
    except DistilflowError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail(interruption.STOPPED, interruption.EXIT_CODE)
    except OSError as error:
        if is_disk_full(error):
            _fail(str(disk_full(error.filename or settings.home())), 78)
        if error.errno not in _NOT_OURS or not str(error.filename).startswith(str(settings.home())):
            raise
        _fail(str(unusable_home(Path(error.filename), error)), 78)


@app.command(name="run")
def _run_placeholder() -> None:
    """Distil a student: seeds → augment → sft → logits → kd → evaluate → report."""


@app.command(name="sweep")
def _sweep_placeholder() -> None:
    """Distil every combination of students, teachers, K, …, and rank them by quality and cost."""


@app.command(name="experiment")
def _experiment_placeholder() -> None:
    """Answer one question of the method on your data: which K, which teacher, how many rows, …"""


def register_flow(command: str) -> None:
    """Give `run`, `sweep` or `experiment` the parameters of the flow itself, so that there is one list of them."""
    with lean_imports():
        from flows.commands.run import FLOWS, flow_command

        if command in FLOWS:
            del app[command]
            app.command(flow_command(command), name=command)


def _quiet_libraries() -> None:
    """A run shows our lines, not those of the libraries below; theirs go to the Prefect UI and the logs."""
    os.environ.setdefault("DISTILFLOW_CONSOLE", "1")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not os.environ.get("PREFECT_API_URL"):
        folder = settings.made_home() / "prefect"  # the user's own Prefect stays untouched
        folder.mkdir(exist_ok=True)
        os.environ["PREFECT_HOME"] = str(folder)


def _fail(message: str, code: int) -> NoReturn:
    print(f"distilflow: {printable(message)}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
