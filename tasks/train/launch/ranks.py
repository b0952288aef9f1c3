"""Where a rank stands: which of all ranks it is, and which of those on its node."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """Every node has `on_node` ranks, numbered one node after the other."""

    number: int
    ranks: int
    on_node: int

    @staticmethod
    def here() -> Rank:
        """This process's, from what the launcher has set."""
        return Rank(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_SIZE")))

    @property
    def is_first(self) -> bool:
        """Of all: it writes what there is once."""
        return self.number == 0

    @property
    def leads_node(self) -> bool:
        """Of its node: it writes what there is once on every machine."""
        return self.number % self.on_node == 0

    @property
    def node(self) -> int:
        return self.number // self.on_node

    @property
    def nodes(self) -> int:
        return self.ranks // self.on_node

    @property
    def of_node(self) -> range:
        """Numbers of the ranks on this node."""
        return range(self.node * self.on_node, (self.node + 1) * self.on_node)
