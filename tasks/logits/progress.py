"""What the engines of one machine have done, as one: a single count, and tokens a second over all of them."""

from __future__ import annotations

import time
from typing import Any

from infra.processes.child import Reporter


class Progress:
    """Hears what each engine tells, and reports how far the store is: supervised tokens, whoever scored them.

    `found` of the `total` were stored before. `hear` takes the events of `tasks.logits.scorer`: "begun" when an engine
    is ready, "scoring" with all its `tokens` so far and the supervised ones of the shard that it is at (`partial`),
    "stored" with the supervised tokens of `shards` by name, its own or others'.
    """

    def __init__(self, reporter: Reporter, engines: int, found: int, total: int):
        self._reporter = reporter
        self._engines = engines
        self._found, self._total = found, total
        self._tokens: dict[int, int] = {}
        self._partial: dict[int, int] = {}
        self._stored: dict[str, int] = {}
        self._loading = self._ready = self._lost = 0
        self._began: float | None = None
        self._last = 0.0

    @property
    def tokens(self) -> int:
        """Tokens that engines of this machine have scored, supervised or not."""
        return sum(self._tokens.values())

    @property
    def tokens_s(self) -> float:
        """Those, over the time from the first engine's readiness to the last word of one."""
        seconds = 0.0 if self._began is None else self._last - self._began
        return self.tokens / seconds if seconds > 0 else 0.0

    def hear(self, number: int, name: str, /, **fields: Any) -> None:
        """An event of the engine with this number, from 0 on."""
        if name == "loading":
            self._loading += 1
            if self._loading == 1:
                self._reporter.event("loading", engine=f"{self._engines} × {fields['engine']}")
        elif name == "ready":
            self._ready += 1
            which = f"{fields['engine']} ({self._ready} of {self._engines})"
            self._reporter.event("ready", engine=which, seconds=fields["seconds"])
        elif name == "begun":
            self._began = time.monotonic() if self._began is None else self._began
        elif name == "scoring":
            self._last = time.monotonic()
            self._tokens[number], self._partial[number] = fields["tokens"], fields["partial"]
            self._report()
        elif name == "stored":
            self._stored |= fields["shards"]
            self._partial[number] = 0
            self._report()

    def lose(self, number: int, why: str) -> None:
        """An engine is gone, and what it had of a shard with it."""
        self._lost += 1
        self._partial[number] = 0
        self._reporter.event(
            "warning", text=f"engine {number + 1} of {self._engines} is lost, and the others do its part: {why}"
        )

    def _report(self) -> None:
        done = self._found + sum(self._stored.values()) + sum(self._partial.values())
        at_work = self._engines - self._lost
        self._reporter.progress(min(done, self._total), self._total, tokens_s=self.tokens_s, engines=at_work)
