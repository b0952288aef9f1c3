"""`make setup`'s installer: a lock, hash by hash, with PyTorch's CPU build wherever it is to be had.

The ordinary index has no CPU build of torch for Linux, only the CUDA one, half a gigabyte whose hash the CPU lock
refuses. So pip is first asked which versions its own sources offer; where `+cpu` is not among them, torch alone comes
from PyTorch's CPU index, and everything else from pip's sources. Runs with the standard library: nothing is there yet.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
_BUILD = Path(__file__).with_name("build.lock")  # what builds the packages that have no wheel, by its hash too
_ASK = ["--retries", "0", "--timeout", "15"]  # an index that does not answer is not waited for
_INDEX = "https://download.pytorch.org/whl/cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lock", type=Path)
    parser.add_argument("--torch-index", default=_INDEX, help="where PyTorch's CPU build is, if pip's sources lack it")
    arguments = parser.parse_args()
    lock, index = arguments.lock, arguments.torch_index or _INDEX
    torch = _torch(lock.read_text()) if lock.stem == "cpu" else None
    if torch is None or _is_installed(torch) or _offers(torch, []):
        print(f"Installing {lock} with pip's own sources (about 3 minutes) …", flush=True)
    elif _offers(torch, ["--index-url", index]):
        print(f"Installing {lock}, PyTorch's CPU build from {index} (about 3 minutes) …", flush=True)
        with tempfile.NamedTemporaryFile("w", suffix=".lock") as alone:
            alone.write(torch)
            alone.flush()
            _install(Path(alone.name), ["--index-url", index])
    else:
        sys.exit(
            f"PyTorch's CPU build of {_version(torch)} is neither in pip's own sources nor at {index}, which may be "
            "out of reach: nothing was downloaded. Name an index that has it, `make setup TORCH_INDEX=URL`, or a "
            "folder with its wheel, `PIP_FIND_LINKS=FOLDER make setup`."
        )
    _install(lock, [])


def _torch(lock: str) -> str | None:
    """The lock's lines on torch: its version, and the hashes that are right."""
    found = re.search(r"^torch==.*?[^\\]$", lock, re.MULTILINE | re.DOTALL)
    return found and found[0]


def _version(torch: str) -> str:
    return torch.split()[0]


def _is_installed(torch: str) -> bool:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return f"torch=={metadata.version('torch')}" == _version(torch) + "+cpu"
    return False


def _offers(torch: str, where: list[str]) -> bool:
    """Whether there is a CPU build of this version; asks for the list of versions, and downloads no file."""
    words = [*_PIP, *_ASK, "index", "versions", "torch", "--json", *where]
    done = subprocess.run(words, capture_output=True, text=True)
    return f'"{_version(torch).removeprefix("torch==")}+cpu"' in done.stdout


def _install(lock: Path, where: list[str]) -> None:
    """Exits with pip's own words if it fails. What is installed already is left."""
    total = len(re.findall(r"^[a-z0-9].*==", lock.read_text(), re.MULTILINE))
    words = [*_PIP, "install", "--no-deps", "--require-hashes", "--build-constraint", str(_BUILD)]
    words += ["--progress-bar", "off", *where, "-r", str(lock)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        said, done = collections.deque[str](maxlen=20), 0
        for line in pip.stdout:
            said.append(line)
            done += line.startswith(("Collecting ", "Requirement already satisfied", "Ignoring "))
            if sys.stdout.isatty():
                print(f"\r  {done} of {total} packages", end="", flush=True)
    if sys.stdout.isatty():
        print("\r" + " " * 30 + "\r", end="", flush=True)
    if pip.returncode:
        sys.exit("".join(said) + f"Could not install {lock}: pip's words are above.")


if __name__ == "__main__":
    main()
