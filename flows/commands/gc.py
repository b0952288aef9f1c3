"""`distilflow gc` and the flow of that name: what may go, in words and tables, and deleting it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.progress import Progress
from rich.table import Table

from infra.console import Console
from infra.gc.delete import Deleted, delete
from infra.gc.find import plan
from infra.gc.policy import Garbage, GarbagePlan, Policy, Total
from infra.services.embedded import embedded_storage
from infra.store import storage
from infra.store.artifacts import RECORD
from tasks.text.units import size

KINDS = (
    *(
        "seeds",
        "categories",
        "augment",
        "teacher_answers",
        "fit",
        "sft",
        "sft_control",
        "sft_after_kd",
        "logits",
        "kd",
        "rollout",
        "set_aside",
        "overlap",
        "validation",
        "kd_round",
        "kd_continued",
        "quantised",
        "evaluate",
        "report",
        "leaderboard",
        "experiment",
    ),
    *("protect", "benchmark-answers", "benchmark", "harness"),
)
ROOTS = ("report", "leaderboard", "experiment")
console = Console(highlight=False)


def policy_of(
    keep_days: float, keep_last: int, keep: list[str] | None, grace_days: float, answers_days: float | None
) -> Policy:
    """What is kept, from what a person said. An artifact may be named by its address or by that of its record."""
    named = tuple(uri.removesuffix(RECORD).rstrip("/") + "/" for uri in keep or [])
    return Policy(KINDS, ROOTS, keep_days, keep_last, named, grace_days, answers_days)


def print_garbage(policy: Policy, really: bool) -> None:
    """Show what may go and why, then delete it where that is asked."""
    with embedded_storage():
        storage.ensure_bucket()
        found = plan(policy)
        if found.garbage:
            console.print(_listing(found.garbage))
        console.print(_by_kind(found))
        if not found.garbage:
            console.print("Nothing to delete.")
        elif not really:
            console.print(f"Nothing was deleted: `--delete` frees {size(_total(found.garbage).bytes)}.")
        else:
            with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
                task = bar.add_task("deleting")
                deleted = delete(found, policy, lambda done, total: bar.update(task, completed=done, total=total))
            console.print(in_words(deleted), soft_wrap=True)


def in_words(deleted: Deleted) -> str:
    """What a deletion did."""
    lines = [f"Deleted {deleted.objects:,} objects, {size(deleted.bytes)}."]
    lines += [f"Spared {one.uri}: {reason}." for one, reason in deleted.spared]
    return "\n".join(lines)


def rows_by_kind(found: GarbagePlan) -> Iterator[dict[str, Any]]:
    """Kept and garbage of each kind, and of all."""
    kinds = [*dict.fromkeys([*KINDS, *found.kept, *(one.kind for one in found.garbage)])]
    for kind in kinds:
        kept, garbage = found.kept.get(kind, Total()), _total([g for g in found.garbage if g.kind == kind])
        if kept.objects or garbage.objects:
            yield _row(kind, kept, garbage)
    kept = Total(*(sum(getattr(total, name) for total in found.kept.values()) for name in Total.__dataclass_fields__))
    yield _row("all", kept, _total(found.garbage))


def rows_of(garbage: list[Garbage]) -> list[dict[str, Any]]:
    """What may go, one a row."""
    return [
        {"what": one.uri, "is": one.what, "objects": one.objects, "size": size(one.bytes), "why": one.why}
        for one in garbage
    ]


def _row(kind: str, kept: Total, garbage: Total) -> dict[str, Any]:
    return {
        "kind": kind,
        "artifacts kept": kept.artifacts,
        "objects kept": kept.objects,
        "size kept": size(kept.bytes),
        "artifacts to go": garbage.artifacts,
        "objects to go": garbage.objects,
        "size to go": size(garbage.bytes),
    }


def _total(garbage: list[Garbage]) -> Total:
    whole = sum(one.what in ("unreachable", "unfinished", "local copy") for one in garbage)
    return Total(whole, sum(one.objects for one in garbage), sum(one.bytes for one in garbage))


def _by_kind(found: GarbagePlan) -> Table:
    rows = list(rows_by_kind(found))
    table = Table(title="by kind", title_justify="left", title_style="bold")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "kind" else "right")
    for row in rows:
        if row["kind"] == "all":
            table.add_section()
        table.add_row(*(f"{value:,}" if isinstance(value, int) else value for value in row.values()))
    return table


def _listing(garbage: list[Garbage]) -> Table:
    table = Table(title="may go", title_justify="left", title_style="bold")
    for name, justify in (("what", "left"), ("is", "left"), ("objects", "right"), ("size", "right"), ("why", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows_of(garbage):
        table.add_row(row["what"], row["is"], f"{row['objects']:,}", row["size"], row["why"])
    return table
