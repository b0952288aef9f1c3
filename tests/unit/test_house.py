"""Rules of the house that a reader relies on: what importing a part brings along."""

import ast
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENGINES = ("torch", "vllm", "deepspeed", "transformers", "litellm", "scipy")


FLOWS = ("flows.commands.main", "flows.gc", "flows.distill")
PROGRAMS = (  # of engines, which start again and again: what they import, every run waits for
    "tasks.logits.program",
    "tasks.evaluate.heldout.program",
    "tasks.evaluate.benchmarks.program",
    "tasks.train.program",
)
WITHOUT_PREFECT = (
    "infra.store.artifacts",
    "infra.devices",
    "infra.gc.delete",
    "infra.processes.supervise",
    "infra.services.embedded",
    "tasks.augment.controller",
    "tasks.logits.store.reader",
    "tasks.report.page",
    "tasks.evaluate.heldout.metrics",
    "tasks.train.data.order",
    "tasks.train.model.losses",
)


def _brings(modules: tuple[str, ...], unwanted: tuple[str, ...], before: str = "") -> dict[str, str]:
    """Each unwanted module that is there after importing these, with the first of them that brought it."""
    code = f"""
import importlib, json, sys
{before}
first = {{}}
for module in {modules!r}:
    importlib.import_module(module)
    for name in {unwanted!r}:
        if sys.modules.get(name):
            first.setdefault(name, module)
print(json.dumps(first))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_importing_a_flow_imports_no_engine() -> None:
    assert _brings(FLOWS, ENGINES) == {}


def test_an_engines_program_imports_no_other_engine_and_nothing_unused() -> None:
    unused = ("scipy", "sklearn", "pandas", "matplotlib", "torch._inductor.compile_fx", "datasets")
    others = ("vllm", "lm_eval", "prefect", "litellm")  # vLLM is imported where it is what was chosen
    assert (
        _brings(PROGRAMS, (*unused, *others), before="from infra.processes import program; program.hide_unused()") == {}
    )


def test_the_demos_llm_is_up_at_once() -> None:
    heavy = (*ENGINES, "prefect", "numpy", "boto3", "pyarrow", "openai")
    assert _brings(("infra.processes.guardian", "tasks.demo.llm_server"), heavy) == {}


def test_a_stages_own_modules_do_not_know_prefect() -> None:
    assert _brings(WITHOUT_PREFECT, ("prefect",)) == {}


def test_an_import_that_brings_an_engine_is_found() -> None:
    assert _brings(("json", "tasks.train.model.losses"), ("torch", "vllm")) == {"torch": "tasks.train.model.losses"}


def test_no_link_is_committed() -> None:
    """A link points into the machine that it was made on: a clone would use that machine's files, or none."""
    listed = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not [line for line in listed.splitlines() if line.startswith("120000")]


def test_no_class_name_is_given_twice() -> None:
    """Who reads a name in a traceback or a signature knows which thing it is."""
    places: dict[str, list[str]] = {}
    for folder in ("tasks", "infra", "flows"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
    assert len(places) > 100
