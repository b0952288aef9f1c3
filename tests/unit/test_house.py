"""Rules of the house that a reader relies on: what importing a part brings along."""

import subprocess
import sys
from pathlib import Path

import pytest

ENGINES = ("torch", "vllm", "deepspeed", "transformers", "litellm", "scipy")


def _imported_with(module: str) -> set[str]:
    code = f"import sys, {module}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["flows.distill", "flows.cli", "flows.gc"])
def test_importing_a_flow_imports_no_engine(module: str) -> None:
    loaded = _imported_with(module)
    assert not [engine for engine in ENGINES if engine in loaded]


@pytest.mark.parametrize(
    "module",
    [
        "tasks.train.losses",
        "tasks.train.data",
        "tasks.logits.store",
        "tasks.evaluate.metrics",
        "tasks.augment.controller",
        "tasks.report.page",
        "infra.artifacts",
        "infra.devices",
        "infra.gc_deletion",
        "infra.processes",
        "infra.services",
    ],
)
def test_a_stages_own_modules_do_not_know_prefect(module: str) -> None:
    assert "prefect" not in _imported_with(module)


def test_no_link_is_committed() -> None:
    """A link points into the machine that it was made on: a clone would use that machine's files, or none."""
    root = Path(__file__).parents[2]
    listed = subprocess.run(["git", "ls-files", "--stage"], cwd=root, capture_output=True, text=True, check=True).stdout
    assert not [line for line in listed.splitlines() if line.startswith("120000")]
