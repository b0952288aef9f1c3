"""`make release`: sdist and wheel in build/release, made from what git knows and tried where nothing else is.

The wheel is built from the sdist, so that one has all of the other. It is then installed beside the light lock into an
empty environment, where its metadata is read and its commands run. Needs git and the standard library.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
INTO = ROOT / "build" / "release"
PACKAGES = ("flows", "tasks", "infra")
DATA = (".css", ".jinja", ".json", ".jsonl", ".py", ".safetensors", ".sql", ".yaml")
_PIP = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
_READ = """
import sys
from importlib.metadata import distribution, version
from packaging.metadata import Metadata
from packaging.requirements import Requirement
read = Metadata.from_email(distribution("distilflow").read_text("METADATA"), validate=True)
assert str(read.version) == sys.argv[1], f"the wheel says version {read.version}, pyproject.toml {sys.argv[1]}"
assert read.description_content_type == "text/markdown" and read.description
for need in (Requirement(need) for need in distribution("distilflow").requires):
    if not need.marker or need.marker.evaluate({"extra": ""}):
        assert version(need.name) in need.specifier, f"{need}: light.lock has {version(need.name)}"
"""


def main() -> None:
    project_version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    shutil.rmtree(INTO, ignore_errors=True)
    os.environ.pop("PYTHONPATH", None)  # which would show pip this checkout, as if it were installed
    with tempfile.TemporaryDirectory(prefix="distilflow-release-") as folder:
        builder = _environment(Path(folder) / "builder")
        sdist, wheel = build(builder, INTO)
        if missing := left_out(wheel):
            sys.exit(f"{wheel.name} lacks what the code reads: {', '.join(sorted(missing))}")
        print("Installing the wheel beside light.lock, in an empty environment (a few minutes) …", flush=True)
        try_out(_environment(Path(folder) / "empty"), wheel, project_version, Path(folder))
    for made in (sdist, wheel):
        print(f"{made.relative_to(ROOT)}  sha256 {hashlib.sha256(made.read_bytes()).hexdigest()}")


def tracked() -> list[str]:
    """What git knows and is there, by its path in the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.split("\0") if path and (ROOT / path).is_file()]


def build(python: Path, into: Path) -> tuple[Path, Path]:
    """sdist and wheel in `into`, by the setuptools of `python`; from the same commit the wheel's bytes are the same."""
    commit = ["git", "log", "-1", "--format=%ct"]
    moment = subprocess.run(commit, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    env = os.environ | {"SOURCE_DATE_EPOCH": moment}
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="distilflow-sources-") as folder:
        sources = Path(folder) / "sources"
        for path in tracked():
            (sources / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, sources / path)
        _run([python, "-c", _SDIST, into], cwd=sources, env=env)
        (sdist,) = into.glob("*.tar.gz")
        shutil.unpack_archive(sdist, folder)
        unpacked = Path(folder) / sdist.name.removesuffix(".tar.gz")
        words: list[str | Path] = [python, *_PIP, "wheel", "--no-index", "--no-deps", "--no-build-isolation"]
        _run([*words, "--wheel-dir", into, unpacked], cwd=Path(folder), env=env)
    (wheel,) = into.glob("*.whl")
    return sdist, wheel


def left_out(wheel: Path) -> set[str]:
    """Code and data of the packages that the wheel has not."""
    wanted = {path for path in tracked() if path.startswith(tuple(f"{name}/" for name in PACKAGES))}
    with zipfile.ZipFile(wheel) as archive:
        return {path for path in wanted if path.endswith(DATA)} - set(archive.namelist())


def try_out(python: Path, wheel: Path, project_version: str, folder: Path) -> None:
    """Install the wheel with the light lock into the environment of `python`, and use it from an empty folder."""
    _run([python, ROOT / "infra" / "install.py", ROOT / "light.lock"], cwd=ROOT)
    _run([python, *_PIP, "install", "--no-index", "--no-deps", wheel], cwd=ROOT)
    home = folder / "home"
    home.mkdir()
    env = {"PATH": os.defpath, "HOME": str(home), "DISTILFLOW_HOME": str(home)}
    _run([python, "-c", _READ, project_version], cwd=home, env=env)
    for words in (["--help"], ["--version"], ["run", "--help"], ["experiment", "--help"], ["prompts", "prompts"]):
        _run([python.with_name("distilflow"), *words], cwd=home, env=env)


def _environment(folder: Path) -> Path:
    """The Python of a new environment that has what builds packages, and nothing else."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    _run([python, *_PIP, "install", "--no-deps", "--require-hashes", "-r", ROOT / "infra" / "build.lock"], cwd=ROOT)
    return python


def _run(words: list[str | Path], cwd: Path, env: dict[str, str] | None = None) -> None:
    """Exits with the command's own words if it fails."""
    done = subprocess.run(words, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        said = done.stdout[-4000:]
        sys.exit(f"{said}\n`{' '.join(str(word) for word in words[:4])} …` failed: its words are above.")


if __name__ == "__main__":
    main()
