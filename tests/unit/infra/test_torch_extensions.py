"""Extensions are locked by processes that live, and by no others; and built once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.processes.torch_extensions import Baton, build_once

HOLDER = """
import sys, time
from infra.processes.torch_extensions import Baton
assert Baton(sys.argv[1]).try_acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_killed_owner_holds_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()  # what torch's own baton leaves behind
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        baton = Baton(str(lock))
        assert not baton.try_acquire()
        holder.kill()
        holder.wait()
    baton.wait()
    assert baton.try_acquire()
    assert not Baton(str(lock)).try_acquire()
    baton.release()
    assert Baton(str(lock)).try_acquire()


def test_torch_compiles_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    from torch.utils import cpp_extension

    before = cpp_extension.FileBaton
    build_once()
    assert cpp_extension.FileBaton is Baton
    vars(cpp_extension)["FileBaton"] = before


def test_extensions_are_built_with_the_ninja_beside_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    for _ in range(2):
        build_once()
        assert os.environ["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/usr/bin"
    assert shutil.which("ninja") == str(Path(sys.executable).parent / "ninja")
