"""The table of a run's stages on its page in the Prefect UI: what is done and going on, and what it took so far."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from infra.errors import TransientError
from infra.measured import Measured, measured
from infra.orchestration.view import whatever_the_server_says
from infra.stage import Made
from infra.store.artifacts import read_record

_TO_DO, _GOING, _DONE, _FOUND, _FAILED = "to do", "going on", "done", "found", "failed"


class RunProgress:
    """The stages of a run, in order; those that were not foreseen come where they begin.

    One artifact, which is written again whenever a stage begins, gets on or ends. Called in the flow, not in a task,
    first: so it is the run's own.
    """

    def __init__(self, titles: Sequence[str]) -> None:
        self._rows: dict[str, dict[str, Any]] = {title: _row(title, _TO_DO) for title in titles}
        self._made: dict[str, dict[str, Any]] = {}
        self._usd = 0.0
        self._artifact: UUID | None = None

    def begins(self, title: str) -> None:
        self._write(_row(title, _GOING))

    def tells(self, title: str, text: str) -> None:
        """How the stage gets on, in its own words: counts, rate, time left."""
        self._write(_row(title, _GOING, text))

    def failed(self, title: str) -> None:
        self._write(_row(title, _FAILED))

    def done(self, title: str, made: Made) -> None:
        """Rates and dollars are of what was made now: of a stage that was found they were another run's.

        One that this run asks for again (the scores that rows were chosen by, say) stays as it was made.
        """
        if made.cached and title in self._made:
            self._write(self._made[title])
            return
        found: list[Measured] = []
        with contextlib.suppress(TransientError):  # storage is away: the next stage says so
            found = [measured(record) for name in made.new if (record := read_record(made.refs[name].uri))]
        usd, seconds = sum(one.usd for one in found), sum(one.seconds for one in found)
        rows, tokens_s = sum(one.rows for one in found), max((one.tokens_s for one in found), default=0.0)
        self._usd += usd
        row = {
            **_row(title, _FOUND if made.cached else _DONE),
            "seconds": f"{seconds:,.0f}" if found else "",
            "rows/s": f"{rows / seconds:,.1f}" if rows and seconds else "",
            "tokens/s": f"{tokens_s:,.0f}" if tokens_s else "",
            "$": f"{usd:,.2f}" if usd else "",
        }
        self._made |= {} if made.cached else {title: row}
        self._write(row)

    def ends(self) -> None:
        """What is left was not needed: a round after the last that helped, say."""
        for row in self._rows.values():
            row["state"] = "not needed" if row["state"] == _TO_DO else row["state"]
        self._write(None)

    def _write(self, row: dict[str, Any] | None) -> None:
        self._rows |= {row["stage"]: row} if row else {}
        rows = list(self._rows.values())
        over = sum(row["state"] in (_DONE, _FOUND) for row in rows)
        needed = sum(row["state"] != "not needed" for row in rows)
        going = [" · ".join(filter(None, [row["stage"], row["now"]])) for row in rows if row["state"] == _GOING]
        said = " · ".join([f"{over} of {needed} stages", f"${self._usd:,.2f} so far", *going])
        with whatever_the_server_says("stages"):
            if self._artifact is None:
                made: Any = create_table_artifact(table=rows, key="stages", description=said)
                self._artifact = made
                return
            with get_client(sync_client=True) as client:
                client.update_artifact(self._artifact, ArtifactUpdate(data=json.dumps(rows), description=said))


def _row(title: str, state: str, now: str = "") -> dict[str, Any]:
    return {"stage": title, "state": state, "seconds": "", "rows/s": "", "tokens/s": "", "$": "", "now": now}
