"""`make` finds a Python that the lock is for, has uv fetch one, or says in a sentence what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "infra" / "find_python.sh"
NONE = (
    "cpu.lock is for CPython 3.11 with venv, which is neither in PATH nor to be had from uv: install it (Debian and "
    "Ubuntu: `apt install python3.11 python3.11-venv`) or uv, or name it, `make setup PYTHON=FILE`.\n"
)
CHOSEN = (
    "cpu.lock is for CPython 3.11 with venv, and '{}' is not that: name another, `make setup PYTHON=FILE` (where there "
    "is a .venv of another Python, delete it first).\n"
)
MAC = (
    "{}.lock is for Linux x86_64, and this is Darwin arm64: `make setup EXTRA=light` installs what starts runs on a "
    "server (docs/server.md).\n"
)


class Machine:
    """A PATH with nothing but what a test puts there."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.command("uname", '[ "$1" = -s ] && echo Linux || echo x86_64')

    def command(self, name: str, script: str) -> Path:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def python(self, name: str, version: tuple[int, int], lacks: str = "") -> Path:
        """This interpreter, which takes itself for one of that version."""
        as_if = f"import sys; sys.version_info = ({version[0]}, {version[1]}, 7); sys.modules['{lacks}'] = None"
        return self.command(name, f'exec {sys.executable} -c "{as_if}\n$2"')

    def finds(self, lock: str, *chosen: str) -> subprocess.CompletedProcess[str]:
        words = ["/bin/sh", str(SCRIPT), lock, *chosen]
        return subprocess.run(words, capture_output=True, text=True, env={"PATH": str(self.folder)}, timeout=60)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_python_of_the_lock_is_found(machine: Machine) -> None:
    found = machine.python("python3.11", (3, 11))
    machine.python("python3.12", (3, 12))
    assert machine.finds("cpu").stdout == f"{found}\n"
    assert machine.finds("light").stdout == f"{found}\n"


@pytest.mark.parametrize("lock", ["gpu", "light", "docs"])
@pytest.mark.parametrize("minor", [12, 13])
def test_a_newer_one_is_found_for_what_runs_there(machine: Machine, lock: str, minor: int) -> None:
    found = machine.python(f"python3.{minor}", (3, minor))
    assert machine.finds(lock).stdout == f"{found}\n"
    assert machine.finds("cpu").stderr == NONE


def test_a_name_that_leads_nowhere_is_passed_over(machine: Machine) -> None:
    machine.command("python3.11", "echo 'pyenv: python3.11: command not found' >&2; exit 127")
    found = machine.python("python3", (3, 11))
    assert machine.finds("cpu").stdout == f"{found}\n"


@pytest.mark.parametrize("minor", [10, 14])
def test_a_version_that_no_lock_is_for_is_passed_over(machine: Machine, minor: int) -> None:
    machine.python("python3", (3, minor))
    done = machine.finds("light")
    assert done.returncode == 1
    assert done.stderr.startswith("light.lock is for CPython 3.11, 3.12 or 3.13 with venv, which is neither in PATH")


def test_a_python_without_venv_is_passed_over(machine: Machine) -> None:
    machine.python("python3.11", (3, 11), lacks="ensurepip")
    assert machine.finds("cpu").stderr == NONE


def test_where_there_is_none_a_sentence_says_what_to_do(machine: Machine) -> None:
    done = machine.finds("cpu")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", NONE)


def test_uv_fetches_one(machine: Machine) -> None:
    fetched = machine.folder / "uvs-own"
    install = f"printf '#!/bin/sh\\nexec {sys.executable} \"$@\"' >{fetched}; /bin/chmod +x {fetched}"
    find = f'[ "$3 $4" = "--system 3.11" ] && [ -f {fetched} ] && echo {fetched}'
    machine.command("uv", f"case $2 in\ninstall) {install} ;;\nfind) {find} ;;\nesac")
    done = machine.finds("cpu")
    assert (done.returncode, done.stdout) == (0, f"{fetched}\n")
    assert done.stderr == "No CPython 3.11 in PATH: uv fetches 3.11 …\n"
    assert machine.finds("cpu").stderr == ""  # uv knows it now


def test_where_uv_cannot_fetch_one_its_words_and_the_sentence_are_said(machine: Machine) -> None:
    machine.command("uv", '[ "$2" = find ] || echo "error: no route" >&2; exit 1')
    done = machine.finds("cpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"No CPython 3.11 in PATH: uv fetches 3.11 …\nerror: no route\n{NONE}"


def test_the_one_chosen_is_taken_or_refused(machine: Machine) -> None:
    machine.python("python3.11", (3, 11))
    chosen = str(machine.python("mine", (3, 12)))
    assert machine.finds("light", chosen).stdout == f"{chosen}\n"
    done = machine.finds("cpu", chosen)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", CHOSEN.format(chosen))


def test_on_a_mac_the_engines_are_refused_and_the_client_is_not(machine: Machine) -> None:
    machine.command("uname", '[ "$1" = -s ] && echo Darwin || echo arm64')
    found = machine.python("python3.13", (3, 13))
    for lock in ("cpu", "gpu"):
        done = machine.finds(lock)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", MAC.format(lock))
    assert machine.finds("light").stdout == f"{found}\n"


def test_make_says_the_sentence_and_makes_nothing(machine: Machine) -> None:
    for name in ("make", "sed", "sh"):
        (machine.folder / name).symlink_to(str(shutil.which(name)))
    made = machine.folder / "venv"
    words = [str(machine.folder / "make"), "--silent", "setup", f"VENV={made}"]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=ROOT, env={"PATH": str(machine.folder)}, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith(NONE)
    assert len(done.stderr.splitlines()) == 2  # and make's own
    assert not made.exists()


def test_what_is_installed_stays_chosen(tmp_path: Path) -> None:
    (tmp_path / ".installed-light").touch()
    of_make = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # which `make test` says to its own
    env = {name: value for name, value in os.environ.items() if name not in of_make}
    words = [shutil.which("make") or "make", "--dry-run", f"VENV={tmp_path}"]
    done = subprocess.run([*words, "up"], capture_output=True, text=True, cwd=ROOT, env=env, check=True, timeout=60)
    assert done.stdout == f"{tmp_path}/bin/distilflow up\n"
    words += ["up", "EXTRA=gpu"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env, check=True, timeout=60)
    assert "infra/install.py gpu.lock" in done.stdout
    assert f"rm -f {tmp_path}/.installed-*" in done.stdout
