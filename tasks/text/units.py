"""Figures for people."""

from __future__ import annotations

import humanize


def size(count: float) -> str:
    """Bytes, as 1.5 GiB."""
    return humanize.naturalsize(count, binary=True, format="%.1f").replace(".0 ", " ").replace("Byte", "byte")


def amount(count: int) -> str:
    """A count to three digits: 1.23 M."""
    for unit, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= 0.9995 * unit:
            return f"{count / unit:.3g}{name}"
    return str(count)
