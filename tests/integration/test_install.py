"""`make setup` finds PyTorch's CPU build by itself, and the locks need nothing that this machine alone has."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from packaging.markers import Marker
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9/simple"


class Index:
    """A package index of plain folders on loopback, and what it was asked for."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, list[str]()

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_request(handler, *_: object) -> None:
                self.asked.append(handler.path)

        handler = functools.partial(Handler, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def wheel(self, name: str, version: str) -> str:
        """Offer a package without content; its hash."""
        info, folder = f"{name}-{version}.dist-info", self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(f"{name}.py", f"where = {self.url!r}")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def downloads(self) -> list[str]:
        return [path for path in self.asked if path.endswith(".whl")]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def ordinary(tmp_path: Path) -> Iterator[Index]:
    """As the ordinary index is: torch in its CUDA build only."""
    index = Index(tmp_path / "ordinary")
    index.wheel("torch", "9.9.9")
    yield index
    index.close()


@pytest.fixture
def special(tmp_path: Path) -> Iterator[Index]:
    """As PyTorch's CPU index is."""
    index = Index(tmp_path / "special")
    yield index
    index.close()


@pytest.fixture
def lock(tmp_path: Path, ordinary: Index, special: Index) -> Path:
    other, torch = ordinary.wheel("other", "1.0"), special.wheel("torch", "9.9.9+cpu")
    path = tmp_path / "cpu.lock"
    path.write_text(f"other==1.0 \\\n    --hash=sha256:{other}\ntorch==9.9.9 \\\n    --hash=sha256:{torch}\n")
    return path


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """What is installed into."""
    venv.create(tmp_path / "venv")
    return tmp_path / "venv" / "bin" / "python"


def _install(lock: Path, python: Path, index: str, torch_index: str) -> subprocess.CompletedProcess[str]:
    """With nothing that this machine is set up with."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index, "PIP_PYTHON": str(python), "PIP_NO_CACHE_DIR": "1"}
    words = [sys.executable, str(ROOT / "infra" / "install.py"), str(lock), "--torch-index", torch_index]
    return subprocess.run(words, capture_output=True, text=True, env=env, timeout=60)


def _where(python: Path, module: str) -> str:
    return subprocess.check_output([python, "-c", f"import {module}; print({module}.where)"], text=True).strip()


def test_the_cpu_build_comes_from_its_own_index_and_the_rest_as_configured(
    ordinary: Index, special: Index, lock: Path, python: Path
) -> None:
    done = _install(lock, python, ordinary.url, special.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"Installing {lock}, PyTorch's CPU build from {special.url} (about 3 minutes) …\n"
    assert _where(python, "torch") == special.url
    assert _where(python, "other") == ordinary.url
    assert [path for path in ordinary.downloads() if "torch" in path] == []


def test_a_cpu_build_among_the_configured_sources_is_taken_and_nobody_else_is_asked(
    special: Index, ordinary: Index, lock: Path, python: Path
) -> None:
    (ordinary.folder / "other").rename(special.folder / "other")
    done = _install(lock, python, special.url, NOBODY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"Installing {lock} with pip's own sources (about 3 minutes) …\n"
    assert _where(python, "torch") == special.url


def test_without_a_cpu_build_it_says_so_and_downloads_nothing(ordinary: Index, lock: Path, python: Path) -> None:
    done = _install(lock, python, ordinary.url, NOBODY)
    assert done.returncode == 1
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"PyTorch's CPU build of torch==9.9.9 is neither in pip's own sources nor at {NOBODY}")
    assert "make setup TORCH_INDEX=URL" in sentence
    assert ordinary.downloads() == []


def test_make_ends_with_pips_words_where_the_installer_itself_cannot_be_had(ordinary: Index, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": ordinary.url, "PIP_NO_CACHE_DIR": "1"}
    words = ["make", "setup", "EXTRA=light", f"VENV={tmp_path / 'new'}", f"PYTHON={sys.executable}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 2
    assert "No matching distribution found for pip==" in done.stdout
    assert "Installing" not in done.stdout


def test_another_file_under_the_right_name_is_refused(
    ordinary: Index, special: Index, lock: Path, python: Path
) -> None:
    ordinary.wheel("torch", "9.9.9+cpu")
    done = _install(lock, python, ordinary.url, NOBODY)
    assert done.returncode == 1
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert done.stderr.endswith(f"Could not install {lock}: pip's words are above.\n")


LOCKS = ("cpu-3.11", *(f"{lock}-3.{minor}" for lock in ("gpu", "light") for minor in (11, 12, 13)))


def _hashes(name: str) -> dict[str, set[str]]:
    """What a lock holds for a Python, by package, but torch's CPU build, which has an index of its own."""
    lock, _, python = name.partition("-")
    text = (ROOT / f"{lock}.lock").read_text()
    found = re.findall(r"^([a-z0-9][\w.-]*)==\S+ (?:; (.+) )?\\\n((?: +--hash=\S+(?: \\)?\n)+)", text, re.MULTILINE)
    assert len(found) == len(re.findall(r"^\S+==", text, re.MULTILINE))
    here = {"python_version": python, "python_full_version": f"{python}.9"}
    kept = [(package, lines) for package, marker, lines in found if not marker or Marker(marker).evaluate(here)]
    hashes = {package: set(re.findall(r"sha256:(\w+)", lines)) for package, lines in kept}
    if lock == "cpu":
        assert len(hashes.pop("torch")) == 1
    return hashes


@pytest.fixture(scope="module")
def offered() -> dict[str, dict[str, str]]:
    # pip's own default; in a process of its own, since importing pip swaps distutils for good in the one that does
    default = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    index = subprocess.run([sys.executable, "-c", default], check=True, capture_output=True, text=True).stdout.strip()
    return asyncio.run(_offered(index, sorted(set().union(*map(_hashes, LOCKS)))))


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_is_offered_by_the_ordinary_index(
    name: str, offered: dict[str, dict[str, str]]
) -> None:
    fits = _fitting(int(name.rpartition(".")[2]))
    missing = {
        package
        for package, hashes in _hashes(name).items()
        if not any(fits(filename) for digest, filename in offered[package].items() if digest in hashes)
    }
    assert missing == set()


async def _offered(index: str, packages: list[str]) -> dict[str, dict[str, str]]:
    """By package, the file names by digest, sources included."""
    slots = asyncio.Semaphore(16)
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}

    async def ask(client: httpx.AsyncClient, package: str) -> dict[str, str]:
        async with slots:
            page = await client.get(f"{index}/{package}/")
        page.raise_for_status()
        return {file["hashes"]["sha256"]: file["filename"] for file in page.json()["files"]}

    try:
        async with httpx.AsyncClient(headers=accept, timeout=30, follow_redirects=True) as client:
            return dict(zip(packages, await asyncio.gather(*(ask(client, one) for one in packages)), strict=True))
    except httpx.TransportError as error:
        pytest.skip(f"the ordinary index cannot be reached: {error}")


def _fitting(minor: int) -> Callable[[str], bool]:
    """Whether CPython 3.`minor` on this platform can install a file of this name."""
    here = {*cpython_tags((3, minor)), *compatible_tags((3, minor), interpreter=f"cp3{minor}")}

    def fits(filename: str) -> bool:
        if not filename.endswith(".whl"):
            return filename.endswith((".tar.gz", ".zip"))
        return bool(parse_wheel_filename(filename)[3] & here)

    return fits
