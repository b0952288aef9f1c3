"""`distilflow estimate --ask 20 --show`: what the agents made of some seeds, beside the seeds."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from infra.printable import printable
from tasks.augment.controller import Dropped
from tasks.augment.estimate import Estimate
from tasks.rows import Row

_LONGEST = 600  # characters of a text


def tables(found: Estimate) -> Iterator[Table]:
    """A table for each seed of the sample: the seed, what it became, what was written after it, what was said of it."""
    for seed in found.asked:
        table = Table(
            title=f"{seed.task_category} · {seed.language}", title_justify="left", show_lines=True, expand=True
        )
        table.add_column("", no_wrap=True)
        table.add_column("instruction", ratio=3)
        table.add_column("response", ratio=4)
        table.add_column("what the agents say", ratio=3)
        table.add_row("seed", *_texts(seed), "")
        of_it = [one for one in found.became if _row(one).origin_seed == seed.origin_seed]
        for one in sorted(of_it, key=lambda one: "expansion" in _row(one).lineage):
            is_new, is_kept = "expansion" in _row(one).lineage, isinstance(one, Row)
            name = "new" if is_new else "rewritten" if "rewriting" in _row(one).lineage else "as it was"
            table.add_row(
                Text(name if is_kept else f"{name}\nleft out", style="" if is_kept else "red"),
                *_texts(_row(one)),
                _said(one),
            )
        yield table


def _row(one: Row | Dropped) -> Row:
    return one if isinstance(one, Row) else one.row


def _texts(row: Row) -> tuple[Text, Text]:
    asked = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    return _text(asked), _text(row.response_text)


def _text(text: str) -> Text:
    """A text of a user or model as text: no markup, no control characters."""
    return Text(printable(text[:_LONGEST]) + (" …" if len(text) > _LONGEST else ""))


def _said(one: Row | Dropped) -> Text:
    row = _row(one)
    lines = (
        [f"{one.agent}: {one.reason}" + (f" ({one.detail})" if one.detail else "")] if isinstance(one, Dropped) else []
    )
    if row.scores:
        lines.append(", ".join(f"{name} {score:g}" for name, score in row.scores.items()))
    lines += [f"{agent}: {verdict}" for agent, verdict in row.verdicts.items()]
    return _text("\n".join(lines))
