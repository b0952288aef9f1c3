"""Several stores to train on as one stream of examples: of several teachers, and of rows that differ in kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from infra.errors import ConfigurationError
from infra.store.artifacts import ArtifactRef
from tasks.models import ModelSource
from tasks.rows import Turns
from tasks.text.categories import is_of
from tasks.tokens.spans import UNSUPERVISED, unsupervised_fact
from tasks.train.data.examples import Examples
from tasks.train.data.order import Example
from tasks.train.settings import Distillation


def examples_of(
    stores: Sequence[ArtifactRef],
    student: ModelSource,
    max_length: int,
    kd: Distillation | None,
    turns: Turns = "last",
    only: ArtifactRef | None = None,
    k: int | None = None,
) -> Examples | Routed:
    """Those of one artifact, or of the stores of several teachers."""
    parts = [Examples(store, student, max_length, kd, turns, only, k) for store in stores]
    return Routed(parts) if len(parts) > 1 else parts[0]


class Routed:
    """Examples of the same rows from the stores of several teachers, as if it were one: each row is of one of them.

    Raises ConfigurationError, with the row, where one is of no store or of two, and where the stores have other k.
    """

    def __init__(self, parts: Sequence[Examples]):
        self._parts = parts

    @property
    def k(self) -> int | None:
        return self._parts[0].k

    @property
    def teacher(self) -> str:
        return ", ".join(part.teacher for part in self._parts)

    def __iter__(self) -> Iterator[Example]:
        of_parts = [part.categories for part in self._parts]
        for row_id, category in self._parts[0].rows():
            if (stores := sum(is_of(categories, category) for categories in of_parts)) != 1:
                raise ConfigurationError(
                    f"row {row_id} (task category {category!r}) is of {stores or 'none'} of the {len(of_parts)} stores "
                    "to train on, and has to be of one: score it with one teacher"
                )
        for part in self._parts:
            yield from part
            if part.k != self.k:
                raise ConfigurationError("the teachers' stores are of two k: score all rows with one")

    def facts(self) -> dict[str, Any]:
        """Those of all stores: what was skipped and left out in any of them."""
        each = [part.facts() for part in self._parts]
        unsupervised = sum((Counter(facts.get(UNSUPERVISED, {})) for facts in each), Counter[str]())
        merged = {name: value for facts in reversed(each) for name, value in facts.items()}
        skipped = sum((facts["skipped"] for facts in each), Counter[str]())
        return {**merged, "skipped": skipped, **unsupervised_fact(unsupervised)}


class Mixture:
    """Examples of several stores, those of one after those of the other, with `kd_weight` where theirs is not 1.

    Raises ConfigurationError where the stores do not go together, or one of them has no example.
    """

    def __init__(self, parts: Sequence[Examples | Routed], kd_weight: float):
        self._parts, self._kd_weight = parts, kd_weight

    def __iter__(self) -> Iterator[Example]:
        first = self._parts[0]
        for number, part in enumerate(self._parts):
            found = 0
            for example in part:
                found += 1
                yield replace(example, part=number, kd_weight=example.kd_weight or self._kd_weight)
            if (part.k, part.teacher) != (first.k, first.teacher):
                raise ConfigurationError("the stores to train on are of two teachers, or two k: score both alike")
            if not found:
                skipped = dict(part.facts()["skipped"])
                raise ConfigurationError(f"no row of store {number + 1} is usable for training: {skipped}")

    def facts(self) -> dict[str, Any]:
        """Those of the first store, with what was skipped in all of them."""
        each = [part.facts() for part in self._parts]
        return {**each[0], "skipped": sum((facts["skipped"] for facts in each), Counter())}
