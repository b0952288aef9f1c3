"""What `make release` builds holds whatever the code reads, and says who it is."""

from __future__ import annotations

import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from infra import release

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return release.build(Path(sys.executable), tmp_path_factory.mktemp("release"))


def test_the_wheel_holds_the_code_and_the_data_that_it_reads(built: tuple[Path, Path]) -> None:
    _, wheel = built
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {"tasks/augment/prompts/expansion.jinja", "tasks/demo/data/seeds.jsonl"} <= held
    assert len(held) > 300
    assert release.left_out(wheel) == set()


def test_what_a_wheel_lacks_is_named(built: tuple[Path, Path], tmp_path: Path) -> None:
    poorer = tmp_path / "poorer.whl"
    with zipfile.ZipFile(built[1]) as old, zipfile.ZipFile(poorer, "w") as new:
        for name in old.namelist():
            if not name.endswith(("selection.jinja", ".safetensors")):
                new.writestr(name, old.read(name))
    missing = release.left_out(poorer)
    assert "tasks/augment/prompts/selection.jinja" in missing
    assert {Path(path).suffix for path in missing} == {".jinja", ".safetensors"}


def test_every_kind_of_data_in_the_packages_is_looked_for_or_is_for_the_repository_alone() -> None:
    for_the_repository = {"", ".Dockerfile", ".example", ".lock", ".md", ".sh"}
    inside = [path for path in release.tracked() if path.split("/")[0] in release.PACKAGES]
    assert {Path(path).suffix for path in inside} - for_the_repository == set(release.DATA)


def test_the_release_has_the_projects_one_version_and_valid_metadata(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    name = f"distilflow-{PROJECT['version']}"
    assert sdist.name == f"{name}.tar.gz"
    assert wheel.name == f"{name}-py3-none-any.whl"
    metadata = Metadata.from_email(zipfile.ZipFile(wheel).read(f"{name}.dist-info/METADATA"), validate=True)
    assert (metadata.name, str(metadata.version)) == (PROJECT["name"], PROJECT["version"])
    assert metadata.requires_python == PROJECT["requires-python"]
    assert metadata.description == (ROOT / "README.md").read_text()
    assert (
        "distilflow = flows.commands.main:main"
        in zipfile.ZipFile(wheel).read(f"{name}.dist-info/entry_points.txt").decode()
    )


def test_the_same_commit_makes_the_same_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    _, again = release.build(Path(sys.executable), tmp_path)
    assert again.read_bytes() == built[1].read_bytes()


def test_the_sdist_holds_no_file_that_git_does_not_know(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        files = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {path for path in files if path.startswith("distilflow.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert files - made <= set(release.tracked())
    assert {"README.md", "LICENSE", "pyproject.toml"} <= files
