"""The documents are true: every command in them is there, and takes the flags that they show. None is run."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from cyclopts import App, CycloptsError
from prefect.cli._app import _app as prefect_app
from prefect.flows import Flow, load_flow_from_entrypoint

from flows.commands import main
from flows.experiments import Name

ROOT = Path(__file__).parents[2]
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), ROOT / "tests" / "README.md"]
}
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
OTHERS = {"cp", "docker", "git", "kubectl", "pre-commit", "tar"}  # of others: what they name of ours has to be there
OF_OTHERS = {"--param", "--dist"}  # flags in a text that are not `distilflow`'s
_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`((?:make|distilflow|python -m|\.venv/bin/\S+) [^`]*)`")
_OURS = re.compile(r"(?:flows|tasks|infra|tests|docs)/[\w./-]*\w")


def commands(text: str) -> Iterator[str]:
    """The commands of a document, in blocks and in sentences, without what is set for them and remarks."""
    lines = [line for block in _BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *_INLINE.findall(text)]:
        command = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", re.sub(r"(^|\s)#.*", "", line)).strip()
        if command and not command.endswith("…"):
            yield command


COMMANDS = [(path, command) for path, text in DOCUMENTS.items() for command in commands(text)]


def of(*names: str) -> list[tuple[str, list[str]]]:
    """The words of all commands of one program."""
    split = [(path, shlex.split(command)) for path, command in COMMANDS]
    return [(path, words) for path, words in split if words[0].removeprefix(".venv/bin/") in names]


def parsed(app: App, path: str, words: Sequence[str]) -> None:
    try:
        app.parse_args([*words[1:]], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise AssertionError(f"{path}: {shlex.join(words)}: {error}") from error


def test_every_command_is_of_a_program_that_is_looked_at() -> None:
    known = {"make", "distilflow", "prefect", "python", *OTHERS}
    assert {words[0].removeprefix(".venv/bin/") for _, words in of(*known)} <= known
    assert len(COMMANDS) == len(of(*known)), [c for c in COMMANDS if shlex.split(c[1])[0] not in known]
    assert len(of("distilflow")) > 40


@pytest.mark.parametrize("command", sorted({shlex.join(words) for _, words in of("make")}))
def test_make_targets_exist(command: str) -> None:
    words = shlex.split(command)
    done = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in words:
        if word.startswith("NAME="):
            benches = {path.stem for path in (ROOT / "tests" / "bench").glob("*.py")}
            assert word[5:] in ({"…", *get_args(Name)} if "experiment" in words else {"…"} | benches), word


def test_distilflow_takes_the_flags() -> None:
    for path, words in of("distilflow"):
        assert words[1] in main.app, (path, words)
        main.register_flow(words[1])
        if len(words) > 2 or words[0].startswith(".venv"):  # else a sentence speaks of the command
            parsed(main.app, path, [word.replace("…", "x") for word in words])


def test_prefect_takes_what_it_is_told() -> None:
    assert len(of("prefect")) > 5
    for path, words in of("prefect"):
        parsed(prefect_app, path, words)


@pytest.mark.parametrize("words", [words for _, words in of("prefect") if words[1:3] == ["deployment", "run"]])
def test_deployments_and_their_parameters_exist(words: list[str]) -> None:
    given = [words[i + 1].split("=")[0] for i, word in enumerate(words) if word == "--param"]
    flow, deployment = words[3].split("/")
    (entry,) = (d for d in DEPLOYMENTS if (d["name"], d["entrypoint"].split(".")[-1]) == (deployment, flow))
    function: Flow[..., Any] = load_flow_from_entrypoint(entry["entrypoint"])
    assert set(given) <= inspect.signature(function.fn).parameters.keys()


def test_deployments_that_are_named_exist() -> None:
    known = {f"{entry['entrypoint'].split('.')[-1]}/{entry['name']}" for entry in DEPLOYMENTS}
    for path, text in DOCUMENTS.items():
        named = set(re.findall(r"`((?:distill|sweep|stage|gc)/[\w.-]+)`", text))
        assert named <= known, path


def test_modules_that_are_run_exist() -> None:
    assert of("python")
    for path, words in of("python"):
        if words[1] != "-m":
            assert words[1].endswith(".py"), (path, words)  # that it is there, the next test says
            continue
        module = words[2].replace(".", "/")
        if module != "pytest":
            assert any((ROOT / place).is_file() for place in (f"{module}.py", f"{module}/__main__.py")), (path, words)
        if words[2] == "tests.bench" and words[3] != "NAME":
            assert (ROOT / "tests" / "bench" / f"{words[3]}.py").is_file(), (path, words)


def test_files_that_commands_name_exist() -> None:
    made = {"infra/.env", "docs/site"}
    for path, command in COMMANDS:
        for name in _OURS.findall(re.sub(r"\S+://\S+|registry\S+", "", command)):
            assert name in made or (ROOT / name).exists(), (path, command)


def test_flags_that_are_named_are_real() -> None:
    known, tables = set(OF_OTHERS), set[str]()  # of tables, keys are people's own: --augmentation.routes.zh
    for command in ("run", "sweep"):
        main.register_flow(command)
    for command in main.app:
        if not command.startswith("-"):
            for argument in main.app[command].assemble_argument_collection():
                known |= set(argument.names) | set(argument.negatives)
                tables |= set(argument.names) if "dict[" in str(argument.hint) else set()
    for path, text in DOCUMENTS.items():
        for flag in sorted(set(re.findall(r"`(--[a-z][a-z0-9_.-]+)", text))):
            assert flag in known or flag.rpartition(".")[0] in tables, (path, flag)
