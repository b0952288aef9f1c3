"""What a stage shows, kept for a test to look at."""

from __future__ import annotations

from infra.stage import Unseen


class Seen(Unseen):
    """A view that keeps what it is warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)
