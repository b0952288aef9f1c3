"""What people see of a running stage: a bar and one line on the console, progress and logs in the Prefect UI.

One of the few files in `infra` that import Prefect.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import re
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect import task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from infra.console import Console
from infra.printable import printable
from infra.processes.supervise import Event
from infra.stage import Made
from infra.store import storage

Tick = Callable[..., None]  # tick(done, total, note="")
_UI_INTERVAL_S = 2.0
_LOG_INTERVAL_S = 15.0
_LONG_PACE_S = 60.0  # between checkpoints, from which it is worth a word


console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def on_console() -> bool:
    """Whether a person started this process and reads its output (the CLI sets it; workers do not)."""
    return os.environ.get("DISTILFLOW_CONSOLE") == "1"


@dataclass(frozen=True)
class _State:
    """Where a stage is; `counted` where `done` and `total` are rows, steps or tokens that people can read."""

    done: float
    total: int
    note: str
    counted: bool = True


class StageView:
    """One stage as people see it.

    `tick` only notes where the stage is, so it may be called from anywhere as often as one likes; a thread
    tells the Prefect server.
    """

    def __init__(self, name: str, doing: str, tells: Callable[[str], None] | None = None):
        self.name = name
        self._tells = tells
        self._doing = doing
        self._started = time.monotonic()
        self._state: _State | None = None
        self._bar: Progress | None = None
        self._over = threading.Event()

    def tick(self, done: int, total: int, note: str = "") -> None:
        """Report progress."""
        self._show(_State(done, total, note))

    def follow(self, describe: Callable[[Event], str]) -> Callable[[Event], None]:
        """A receiver of a supervised process's events that shows its progress, in `describe`'s words."""

        def on_event(event: Event) -> None:
            if event["event"] == "progress":
                self.tick(event["done"], event["total"], describe(event))
            elif event["event"] == "loading":
                self._engine(f"{event['engine']} is loading")
            elif event["event"] == "ready":
                self._engine(f"{event['engine']} is ready after {event['seconds']:,.0f} s")
            elif event["event"] == "traffic":
                self.note(
                    f"still at work: {event['bytes'] / 1e9:,.1f} GB read and written in {event['seconds']:,.0f} s"
                )
            elif event["event"] == "note":
                self.note(event["text"])
            elif event["event"] == "resumed":
                self.note(_resumed(event))
            elif event["event"] == "checkpoint_pace" and event["interval_s"] > _LONG_PACE_S:
                self.note(f"a checkpoint every {event['interval_s'] / 60:,.0f} min: one takes {event['cost_s']:,.0f} s")
            elif event["event"] == "warning":
                self.warn(event["text"])
            elif event["event"] == "checkpoint_lost":
                self.warn(f"a checkpoint could not be stored ({event['why']}); training goes on")

        return on_event

    def pass_on(self, share: float, text: str) -> None:
        """Report the progress of a run elsewhere that does the stage: in per cent, and in its own words."""
        self._show(_State(share, 100, text, counted=False))

    def _engine(self, text: str) -> None:
        """What the stage waits for before it gets on: in the run's log, and where its progress is shown."""
        get_run_logger().info("%s: %s", self.name, text)
        before = self._state or _State(0, 0, "", counted=False)
        self._show(replace(before, note=text))

    def _show(self, state: _State) -> None:
        self._state = state
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.done, total=state.total or None, note=state.note)

    def _publish_progress(self) -> None:
        """Keep a progress artifact, and a log line now and then, until the stage is over."""
        artifact: UUID | None = None
        shown: _State | None = None
        first: tuple[float, float] | None = None
        next_log = self._started + _LOG_INTERVAL_S
        while not self._over.wait(_UI_INTERVAL_S) or self._state != shown:
            if self._state is None or self._state == shown:
                continue
            shown = self._state
            done, total = shown.done, shown.total
            share, counts = 100.0 * done / max(total, 1), [""]
            if shown.counted:
                now = time.monotonic()
                began, already = first = first or (now, done)  # a resumed stage does not start at 0
                left = (now - began) * (total - done) / (done - already) if already < done < total else None
                counts = [f"{done:,} of {total:,}", _rate(done - already, now - began), _about(left)]
            text = " · ".join(filter(None, [self._doing, shown.note, *counts]))
            with whatever_the_server_says(key := re.sub("[^a-z0-9-]", "-", f"{self.name}-progress")):
                if artifact is None:
                    made: Any = create_progress_artifact(progress=share, key=key, description=text)
                    artifact = made
                else:
                    update_progress_artifact(artifact, progress=share, description=text)
            if time.monotonic() >= next_log:
                next_log += _LOG_INTERVAL_S
                get_run_logger().info("%s: %s", self.name, text)
                if self._tells is not None:
                    self._tells(text)

    def note(self, text: str) -> None:
        """A line under the stage: something that people should know."""
        get_run_logger().info("%s: %s", self.name, printable(text))
        say(f"  [dim]{'':<12} {escape(text)}[/dim]")

    def warn(self, text: str) -> None:
        get_run_logger().warning("%s: %s", self.name, printable(text))
        say(f"  [yellow]{'':<12} {escape(text)}[/yellow]")

    def table(self, key: str, rows: list[dict[str, Any]], description: str) -> None:
        """A table among the run's artifacts in the Prefect UI."""
        publish_table(key, rows, description)

    def markdown(self, key: str, text: str, description: str) -> None:
        """A text among the run's artifacts in the Prefect UI."""
        publish_markdown(key, text, description)

    def page(self, key: str, uri: str, name: str) -> None:
        """A link on the run's page that opens a stored HTML page; who has it can read that, so no log holds it."""
        address = storage.link(uri, "text/html; charset=utf-8")
        until = datetime.now(UTC) + timedelta(seconds=storage.LINK_S)
        said = f"The link to the {name}, until {until:%-d %b %Y %H:%M} UTC"
        with whatever_the_server_says(key):
            create_link_artifact(address, f"Open the {name}", key=key, description=said)

    async def batch(self, name: str, do: Callable[[], Awaitable[None]]) -> None:
        """A part of the stage as a Prefect task of its own; its retries are the stage's."""

        @task(name=f"{self.name}-batch", task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
        async def batch() -> None:
            await do()

        await batch()

    def done(self, made: Made, text: str) -> None:
        """The stage's one line: what, how many, how long, where."""
        took, uri = "found" if made.cached else f"{made.seconds:.0f} s", made.shown.uri
        get_run_logger().info("%s: %s · %s · %s", self.name, printable(text), took, uri)
        mark = "[dim]=[/dim]" if made.cached else "[green]✓[/green]"
        say(f"{mark} [bold]{self.name:<12}[/bold] {escape(text)} [dim]· {took} · {uri}[/dim]")


def _rate(done: float, seconds: float) -> str:
    return f"{done / seconds:,.1f}/s" if done > 0 and seconds > 0 else ""


def _about(seconds: float | None) -> str:
    """Time that is left, as roughly as it is known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"


def _resumed(event: Event) -> str:
    if event["lost"]:
        return f"starts anew: the checkpoint of {event['lost']} steps is of another ZeRO stage or precision"
    return f"continues from the checkpoint at step {event['step']}"


@contextlib.contextmanager
def stage_view(name: str, doing: str, tells: Callable[[str], None] | None = None) -> Iterator[StageView]:
    """Show a stage while the `with` runs: on a terminal as a bar that vanishes when the stage's line is printed.

    `tells` hears now and then how it gets on.
    """
    view = StageView(name, doing, tells)
    publisher = threading.Thread(target=contextvars.copy_context().run, args=(view._publish_progress,), daemon=True)
    publisher.start()
    try:
        with _bar(view) if on_console() and console.is_terminal else contextlib.nullcontext():
            yield view
    finally:
        view._over.set()
        publisher.join(timeout=10)


@contextlib.contextmanager
def _bar(view: StageView) -> Iterator[None]:
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
        bar.add_task(view._doing, total=None, stage=view.name, note="")
        view._bar = bar
        try:
            yield
        finally:
            view._bar = None


def say(markup: str) -> None:
    """A line on the console of a person's run (above the bar, where there is one)."""
    if on_console():
        console.print(markup, soft_wrap=True)


def log(text: str) -> None:
    """A line in the run's log in the Prefect UI."""
    get_run_logger().info("%s", printable(text))


def publish_table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    """A table among the run's artifacts in the Prefect UI."""
    with whatever_the_server_says(key):
        create_table_artifact(table=rows, key=key, description=description)


def publish_markdown(key: str, text: str, description: str) -> None:
    """A text among the run's artifacts in the Prefect UI."""
    with whatever_the_server_says(key):
        create_markdown_artifact(text, key=key, description=description)


@contextlib.contextmanager
def whatever_the_server_says(key: str) -> Iterator[None]:
    """Show something; a run whose server does not take it goes on. What was refused is not told: it may be a link."""
    try:
        yield
    except (httpx.HTTPError, ObjectNotFound) as error:
        why = (
            f"status {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else type(error).__name__
        )
        get_run_logger().warning("the Prefect server does not take the artifact %s (%s)", key, why)
