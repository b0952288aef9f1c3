"""rich's console, on which text from models, data and providers is text: none of its control characters is sent."""

from __future__ import annotations

from collections.abc import Iterable

from rich import console
from rich.segment import Segment

from infra.printable import printable


class Console(console.Console):
    """As rich's."""

    def render(
        self, renderable: console.RenderableType, options: console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
