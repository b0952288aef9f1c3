"""Delete what no kept report refers to, on a schedule: look → show → delete (where that is asked)."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from prefect.logging import get_run_logger
from pydantic import BaseModel, Field

from flows.commands.gc import in_words, policy_of, rows_by_kind, rows_of
from infra.gc.delete import delete
from infra.gc.find import plan
from infra.orchestration.view import publish_table

_ROWS_SHOWN = 1_000


class Collected(BaseModel):
    """What was found, and what of it was deleted; sizes in bytes."""

    found: int
    found_bytes: int
    deleted_objects: int = 0
    deleted_bytes: int = 0
    spared: dict[str, str] = {}


@flow(name="gc", retries=0, validate_parameters=True)
def gc(
    dry_run: bool = True,
    keep_days: Annotated[float, Field(ge=0)] = 30,
    keep_last: Annotated[int, Field(ge=0)] = 10,
    keep: list[str] | None = None,
    grace_days: Annotated[float, Field(ge=0)] = 7,
    answers_days: Annotated[float | None, Field(ge=0)] = None,
) -> Collected:
    """List what no kept report refers to, and delete it unless this is a dry run.

    The artifacts `gc-kinds` and `gc-list` show what stays and what goes, and why. Runs may go on meanwhile: what
    they use, finish or touch is spared.

    Args:
        dry_run: only list
        keep_days: reports that a run made or found again within so many days are kept, with all they refer to
        keep_last: so many of the newest reports are kept however old they are
        keep: artifacts to keep with all they refer to, by s3:// address
        grace_days: whatever a run made, used or touched within so many days is kept; more than your longest run
        answers_days: also delete paid-for LLM answers older than this; without it they are kept for ever
    """
    policy = policy_of(keep_days, keep_last, keep, grace_days, answers_days)
    found = plan(policy)
    publish_table("gc-kinds", list(rows_by_kind(found)), "What stays and what may go, by kind")
    shown = rows_of(found.garbage[:_ROWS_SHOWN])
    publish_table("gc-list", shown, f"{len(shown):,} of {len(found.garbage):,} that may go, and why")
    collected = Collected(found=len(found.garbage), found_bytes=sum(one.bytes for one in found.garbage))
    if dry_run:
        get_run_logger().info("%d may go; this is a dry run, so nothing was deleted", collected.found)
        return collected
    deleted = delete(found, policy)
    get_run_logger().info(in_words(deleted))
    return collected.model_copy(
        update={
            "deleted_objects": deleted.objects,
            "deleted_bytes": deleted.bytes,
            "spared": {one.uri: reason for one, reason in deleted.spared},
        }
    )
