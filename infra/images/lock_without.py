"""Prints a lock without what an image leaves out; runs while an image is built, on Python's standard library alone.

`python lock_without.py gpu.lock --extra dev deepspeed peft` leaves out what only the extra `dev` of pyproject.toml
names, and the packages named. What they alone depend on stays: a lock does not say whose it is.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path


def without(lock: str, names: Iterable[str]) -> str:
    """The lock less the entries of `names`."""
    left_out = set(names)
    entries = re.split(r"\n(?=\S)", lock.strip())
    return "\n".join(entry for entry in entries if package_name(entry) not in left_out) + "\n"


def only_in(pyproject: str, extra: str) -> list[str]:
    """The packages that `extra` names and neither the project's own dependencies nor its extra `gpu` do."""
    project = tomllib.loads(pyproject)["project"]
    extras = project["optional-dependencies"]
    needed = {package_name(each) for each in project["dependencies"] + extras["gpu"]}
    return [name for name in map(package_name, extras[extra]) if name not in needed]


def package_name(requirement: str) -> str:
    """`Foo_Bar[x]>=1` as `foo-bar`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lock", type=Path)
    parser.add_argument("packages", nargs="*")
    parser.add_argument("--extra", default="dev")
    arguments = parser.parse_args()
    names = [*only_in(Path("pyproject.toml").read_text(), arguments.extra), *arguments.packages]
    print(without(arguments.lock.read_text(), names), end="")


if __name__ == "__main__":
    main()
