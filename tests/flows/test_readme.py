"""The README is true: its targets exist, and its commands take the flags that it shows."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
INLINE = re.findall(r"`(make [a-z]+[^`]*)`", README)


@pytest.mark.parametrize("command", sorted({c for c in [*COMMANDS, *INLINE] if c.startswith("make ")}))
def test_make_targets_of_the_readme_exist(command: str) -> None:
    words = shlex.split(command.replace("=…", "=x"))
    done = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(".venv/bin/distilflow")])
def test_run_takes_the_flags_of_the_readme(command: str) -> None:
    parse = (
        "import sys; from flows import cli; cli._quiet_libraries(); cli.register_flow(sys.argv[1]); "
        "cli.app.parse_args(sys.argv[1:], exit_on_error=False)"
    )
    words = shlex.split(command)[1:]
    done = subprocess.run([sys.executable, "-c", parse, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_flag_and_variable_that_the_readme_names_is_real() -> None:
    from flows.distill import distill

    parameters = distill.fn.__annotations__
    for flag in set(re.findall(r"`--([a-z_.-]+)", README)):
        name, _, field = flag.replace("-", "_").partition(".")
        assert name in parameters, flag
        if field:
            annotation = str(parameters[name])
            model = {"sft": "Training", "kd": "Distillation", "run": "TrainingRun"}.get(name, name.capitalize())
            assert model in annotation
            assert field.removeprefix("no_").split(".")[0] in _fields(model), flag


def _fields(model: str) -> set[str]:
    from flows import params

    names: set[str] = set(getattr(params, model).model_fields)
    return names
