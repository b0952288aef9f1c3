"""The outermost frame of an engine's process: imports in two thirds of the time.

`python -m infra.processes.program MODULE FOLDER` runs MODULE as `python -m MODULE FOLDER` would. An engine imports a
hundred thousand objects, over which Python's garbage collector passes again and again, and transformers imports
scikit-learn and SciPy where they are installed, for a way to generate and a loss of object
detectors that nobody here uses. Standard library only.
"""

from __future__ import annotations

import contextlib
import gc
import runpy
import sys
from collections.abc import Iterator
from typing import Any


def command(module: str) -> list[str]:
    """What starts it; the folder is to be added."""
    return [sys.executable, "-m", __name__, module]


def imported() -> None:
    """The program has what it needs: from here on garbage is collected, among what is new."""
    gc.enable()
    gc.freeze()


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """The same for the length of a `with`, in a program that begins otherwise, and may use SciPy itself."""
    modules: dict[str, Any] = sys.modules
    hidden = "sklearn" not in modules  # an engine's process hides it for good
    modules.setdefault("sklearn", None)
    gc.disable()
    try:
        yield
    finally:
        imported()
        if hidden:
            del modules["sklearn"]


def hide_unused() -> None:
    """Go on as if they were not installed."""
    modules: dict[str, Any] = sys.modules
    modules.update({"sklearn": None, "scipy": None})


def main() -> None:
    gc.disable()
    hide_unused()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
