"""Programs start as Python would start them, and lean imports leave nothing behind but themselves."""

import gc
import subprocess
import sys
from pathlib import Path

from infra.processes import program

_MODULE = """
import gc, sys
print(__name__, sys.argv[1:], gc.isenabled(), [name for name, module in sys.modules.items() if module is None])
from infra.processes.program import imported
imported()
print(gc.isenabled(), gc.get_freeze_count() > 1000)
"""


def test_a_program_is_main_and_collects_once_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text(_MODULE)
    command = [*program.command("engine"), "FOLDER"]
    env = {"PYTHONPATH": f"{tmp_path}:{Path(program.__file__).parents[2]}"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "__main__ ['FOLDER'] False ['sklearn', 'scipy']\nTrue True\n"
    assert command[:2] == [sys.executable, "-m"]


def test_lean_imports_are_over_with_the_with() -> None:
    before = sys.modules.pop("sklearn", None)
    try:
        with program.lean_imports():
            assert not gc.isenabled()
            assert sys.modules["sklearn"] is None  # type: ignore[comparison-overlap]
        assert gc.isenabled()
        assert "sklearn" not in sys.modules
        sys.modules["sklearn"] = None  # type: ignore[assignment]
        with program.lean_imports():
            pass
        assert sys.modules["sklearn"] is None, "what an engine hides stays hidden"  # type: ignore[comparison-overlap]
    finally:
        sys.modules.pop("sklearn", None)
        if before is not None:
            sys.modules["sklearn"] = before
