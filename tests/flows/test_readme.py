"""The README is true: its targets exist, and its commands take the flags that it shows."""

import inspect
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclopts import CycloptsError
from prefect.flows import Flow, load_flow_from_entrypoint

from flows.commands import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
OF_PREFECT = ("--job-variable", "--param")
INLINE = re.findall(r"`(make [a-z]+[^`]*)`", README)


@pytest.mark.parametrize("command", sorted({c for c in [*COMMANDS, *INLINE] if c.startswith("make ")}))
def test_make_targets_of_the_readme_exist(command: str) -> None:
    words = shlex.split(command.replace("=…", "=x"))
    done = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_distilflow_takes_the_flags_of_the_readme() -> None:
    commands = [c for c in COMMANDS if c.startswith(".venv/bin/distilflow")]
    assert len(commands) > 5
    for command in commands:
        words = shlex.split(command)[1:]
        main.register_flow(words[0])
        try:
            main.app.parse_args(words, exit_on_error=False, print_error=False)
        except CycloptsError as error:
            raise AssertionError(f"{command}: {error}") from error


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(".venv/bin/prefect deployment run")])
def test_deployments_and_their_parameters_in_the_readme_exist(command: str) -> None:
    words = shlex.split(command)
    name, given = words[3], [words[i + 1].split("=")[0] for i, word in enumerate(words) if word == "--param"]
    flow, deployment = name.split("/")
    (entry,) = (d for d in DEPLOYMENTS if (d["name"], d["entrypoint"].split(".")[-1]) == (deployment, flow))
    function: Flow[..., Any] = load_flow_from_entrypoint(entry["entrypoint"])
    assert set(given) <= inspect.signature(function.fn).parameters.keys()


def test_every_flag_that_the_readme_names_is_real() -> None:
    known = set(OF_PREFECT)
    for command in ("run", "sweep"):
        main.register_flow(command)
    for command in main.app:
        if not command.startswith("-"):
            for argument in main.app[command].assemble_argument_collection():
                known |= set(argument.names) | set(argument.negatives)
    for flag in sorted(set(re.findall(r"`(--[a-z][a-z0-9_.-]+)", README))):
        parent = flag.rpartition(".")[0]  # a key of a table: --augmentation.routes.zh
        assert flag in known or parent in known or any(name.startswith(f"{flag}.") for name in known), flag
