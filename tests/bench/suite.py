"""How long the tests take: those without a server or engine, and all, as `make` runs them; and what each file takes.

`python -m tests.bench suite [--jobs N] [--top N]` prints the files that take longest (a file's tests run one after the
other, files side by side), then {"unit_s", "all_s", "tests", "jobs"}. Fails where a test fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]


def run(words: list[str]) -> dict[str, Any]:
    """Seconds of the two commands, installed already, and how many tests there are."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench suite", description=__doc__)
    parser.add_argument("--jobs", type=int, help="files side by side (default: as the Makefile says)")
    parser.add_argument("--top", type=int, default=30)
    arguments = parser.parse_args(words)
    unit_s, _ = _timed("test-unit", arguments.jobs)
    all_s, cases = _timed("test", arguments.jobs)
    taken, tests = defaultdict[str, float](float), Counter[str]()
    for case in cases:
        name = str(case.get("classname")).removeprefix("tests.")
        taken[name] += float(case.get("time", 0))
        tests[name] += 1
    print(f"{'seconds':>8}  {'tests':>5}  file")
    for name, seconds in sorted(taken.items(), key=lambda item: -item[1])[: arguments.top]:
        print(f"{seconds:8.0f}  {tests[name]:5d}  {name}")
    return {"unit_s": unit_s, "all_s": all_s, "tests": len(cases), "jobs": arguments.jobs}


def _timed(target: str, jobs: int | None) -> tuple[float, list[ElementTree.Element]]:
    """Seconds of `make TARGET`, and its tests."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        env = {**os.environ, "PYTEST_ADDOPTS": f"--junit-xml={report}"}
        began = time.monotonic()
        subprocess.run(["make", target, f"JOBS={jobs or ''}"], cwd=ROOT, env=env, check=True)
        seconds = round(time.monotonic() - began, 1)
        return seconds, list(ElementTree.parse(report).iter("testcase"))
