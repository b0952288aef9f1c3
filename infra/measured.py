"""What a record says that its artifact took, in units that add up over stages and runs."""

from __future__ import annotations

from typing import NamedTuple

from infra.store.artifacts import Record


class Measured(NamedTuple):
    """`tokens` are those of the data, however often they were read; `usd` is what providers were paid for them."""

    seconds: float = 0.0
    devices: int = 1
    rows: int = 0
    tokens: int = 0
    tokens_s: float = 0.0
    usd: float = 0.0


def measured(record: Record) -> Measured:
    """What making the artifact took; answers that an earlier run had paid for cost nothing here."""
    counts, facts = record.counts, record.facts
    tokens = counts.get("tokens", counts.get("supervised_tokens", 0))
    usage = (facts.get("usage") or {}).values()
    return Measured(
        seconds=record.seconds,
        devices=int(facts.get("ranks", 1)),
        rows=counts.get("rows", 0),
        tokens=tokens,
        tokens_s=facts.get("tokens_s", tokens / record.seconds if record.seconds else 0.0),  # of training: all epochs
        usd=sum(used.get("paid_usd", used["cost_usd"]) for used in usage),
    )
