"""The locks of the light client and of GPU machines hold for each Python, hash by hash."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13")
EXTRAS = {"gpu": ("gpu", "eval", "quantise", "dev"), "light": ("cluster", "eval")}


def _entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """Each requirement of a lock with what follows it."""
    text = (ROOT / f"{lock}.lock").read_text().replace("\\\n", " ")
    return [(Requirement(line.split(" --")[0]), line.split()) for line in text.splitlines()]


def _locked(lock: str, python: str) -> dict[str, str]:
    """By package, the one version that CPython gets on Linux x86-64."""
    here = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.9",
        "python_version": python,
        "sys_platform": "linux",
    }
    found = [each for each, _ in _entries(lock) if not each.marker or each.marker.evaluate(here)]
    assert len({each.name for each in found}) == len(found)
    return {each.name: str(each.specifier).removeprefix("==") for each in found}


def _direct(lock: str) -> list[Requirement]:
    named = [*PROJECT["dependencies"], *(need for extra in EXTRAS[lock] for need in _extra(extra))]
    return [Requirement(need) for need in named]


def _extra(name: str) -> list[str]:
    needs: list[str] = PROJECT["optional-dependencies"][name]
    return needs


@pytest.mark.parametrize("lock", EXTRAS)
def test_every_requirement_is_one_version_with_its_hashes(lock: str) -> None:
    entries = _entries(lock)
    assert len(entries) > 100
    for requirement, words in entries:
        assert [each.operator for each in requirement.specifier] == ["=="], requirement
        hashes = [word for word in words if word.startswith("--hash")]
        assert hashes, requirement
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), requirement


@pytest.mark.parametrize("lock", EXTRAS)
def test_each_python_gets_the_same_direct_dependencies(lock: str) -> None:
    direct = {canonicalize_name(need.name): need.specifier for need in _direct(lock)}
    chosen = [{name: _locked(lock, python).get(name) for name in direct} for python in PYTHONS]
    assert chosen == [chosen[0]] * len(PYTHONS)
    assert {name: version for name, version in chosen[0].items() if not version or version not in direct[name]} == {}


def test_the_project_admits_the_pythons_of_the_locks_and_says_so() -> None:
    admitted = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(8, 20) if f"3.{minor}" in admitted] == list(PYTHONS)
    prefix = "Programming Language :: Python :: 3."
    named = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if each.startswith(prefix)]
    assert named == list(PYTHONS)
