"""What the engines of one machine have done, as one: a single count, and tokens a second over all of them."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from infra.processes.child import Reporter


class Progress:
    """Hears what each engine tells, and reports how far the work is, whoever does it.

    `found` of the `total` were done before. `hear` takes these events: "begun" when an engine is ready; "working" with
    all its `tokens` so far, how much it has done of the piece that it is at (`partial`), and what else is to be shown;
    "stored" with the sizes of `pieces` by name, its own or others'.
    """

    def __init__(self, reporter: Reporter, engines: int, found: int, total: int):
        self._reporter = reporter
        self._engines = engines
        self._found, self._total = found, total
        self._tokens: dict[int, int] = {}
        self._partial: dict[int, int] = {}
        self._stored: dict[str, int] = {}
        self._loading, self._ready = Counter[str](), Counter[str]()
        self._lost = 0
        self._began: float | None = None
        self._last = 0.0
        self._about: dict[str, Any] = {}

    @property
    def done(self) -> int:
        """Of the total."""
        return min(self._found + sum(self._stored.values()) + sum(self._partial.values()), self._total)

    @property
    def tokens(self) -> int:
        """Tokens that engines of this machine have worked on."""
        return sum(self._tokens.values())

    @property
    def tokens_s(self) -> float:
        """Those, over the time from the first engine's readiness to the last word of one."""
        seconds = 0.0 if self._began is None else self._last - self._began
        return self.tokens / seconds if seconds > 0 else 0.0

    def hear(self, number: int, name: str, /, **fields: Any) -> None:
        """An event of the engine with this number, from 0 on."""
        if name == "loading":
            engine = fields["engine"]
            self._loading[engine] += 1
            if self._loading[engine] == 1:
                self._reporter.event("loading", engine=f"{self._engines} × {engine}" if self._engines > 1 else engine)
        elif name == "ready":
            engine = fields["engine"]
            self._ready[engine] += 1
            of = f" ({self._ready[engine]} of {self._engines})" if self._engines > 1 else ""
            self._reporter.event("ready", engine=engine + of, seconds=fields["seconds"])
        elif name == "begun":
            self._began = time.monotonic() if self._began is None else self._began
        elif name == "working":
            self._last = time.monotonic()
            self._tokens[number], self._partial[number] = fields.pop("tokens"), fields.pop("partial")
            self._about = {name: value for name, value in fields.items() if name != "time"}
            self._report()
        elif name == "stored":
            self._stored |= fields["pieces"]
            self._partial[number] = 0
            self._report()
        elif name == "note":
            self._reporter.note(fields["text"])

    def lose(self, number: int, why: str) -> None:
        """An engine is gone, and what it had of a piece with it."""
        self._lost += 1
        self._partial[number] = 0
        self._reporter.event(
            "warning", text=f"engine {number + 1} of {self._engines} is lost, and the others do its part: {why}"
        )

    def _report(self) -> None:
        at_work = self._engines - self._lost
        self._reporter.progress(self.done, self._total, tokens_s=self.tokens_s, engines=at_work, **self._about)
