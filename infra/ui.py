"""What people see of a running stage: a bar and one line on the console, progress and logs in the Prefect UI.

One of the few files in `infra` that import Prefect.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.logging import get_run_logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from infra.artifacts import ArtifactRef

Tick = Callable[..., None]  # tick(done, total, note="")
_UI_INTERVAL_S = 2.0
_LOG_INTERVAL_S = 15.0
console = Console(highlight=False)


def on_console() -> bool:
    """Whether a person started this process and reads its output (the CLI sets it; workers do not)."""
    return os.environ.get("DISTILFLOW_CONSOLE") == "1"


class StageView:
    """One stage as people see it."""

    def __init__(self, name: str, doing: str):
        self.name = name
        self._doing = doing
        self._started = time.monotonic()
        self._next_ui = 0.0
        self._next_log = self._started + _LOG_INTERVAL_S
        self._artifact: UUID | None = None
        self._bar: Progress | None = None

    def tick(self, done: int, total: int, note: str = "") -> None:
        """Report progress; call it as often as you like."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, note=note)
        share = 100.0 * done / max(total, 1)
        if now >= self._next_ui:
            self._next_ui = now + _UI_INTERVAL_S
            if self._artifact is None:
                key = re.sub("[^a-z0-9-]", "-", f"{self.name}-progress")
                made: Any = create_progress_artifact(progress=share, key=key, description=self._doing)
                self._artifact = made
            else:
                update_progress_artifact(self._artifact, progress=share, description=f"{self._doing} {note}")
        if now >= self._next_log:
            self._next_log = now + _LOG_INTERVAL_S
            left = (now - self._started) * (total - done) / max(done, 1)
            get_run_logger().info(
                "%s: %d of %d%s, about %.0f s left", self.name, done, total, note and f", {note}", left
            )

    def note(self, text: str) -> None:
        """A line under the stage: something that people should know."""
        get_run_logger().info("%s: %s", self.name, text)
        if on_console():
            (self._bar.console if self._bar else console).print(f"  [dim]{'':<12} {text}[/dim]")

    def warn(self, text: str) -> None:
        get_run_logger().warning("%s: %s", self.name, text)
        if on_console():
            (self._bar.console if self._bar else console).print(f"  [yellow]{'':<12} {text}[/yellow]")

    def done(self, ref: ArtifactRef, text: str) -> ArtifactRef:
        """The stage's one line: what, how many, how long, where."""
        if self._artifact is not None:
            update_progress_artifact(self._artifact, progress=100.0, description=f"{self._doing} done")
        took = "found" if ref.cached else f"{ref.seconds:.0f} s"
        get_run_logger().info("%s: %s · %s · %s", self.name, text, took, ref.uri)
        if on_console():
            mark = "[dim]=[/dim]" if ref.cached else "[green]✓[/green]"
            target = self._bar.console if self._bar else console
            target.print(f"{mark} [bold]{self.name:<12}[/bold] {text} [dim]· {took} · {ref.uri}[/dim]", soft_wrap=True)
        return ref


@contextlib.contextmanager
def stage_view(name: str, doing: str) -> Iterator[StageView]:
    """Show a stage while the `with` runs: on a terminal as a bar that vanishes when the stage's line is printed."""
    view = StageView(name, doing)
    if not (on_console() and console.is_terminal):
        yield view
        return
    columns = (
        TextColumn("  [bold]{task.fields[stage]:<12}[/bold] {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]left[/dim]"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}[/dim]"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        bar.add_task(doing, total=None, stage=name, note="")
        view._bar = bar
        yield view


def say(text: str) -> None:
    """A line on the console of a person's run."""
    if on_console():
        console.print(text, soft_wrap=True)


def publish_table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    """A table among the run's artifacts in the Prefect UI."""
    create_table_artifact(table=rows, key=key, description=description)
