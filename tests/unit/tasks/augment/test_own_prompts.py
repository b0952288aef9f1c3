"""A user's prompts take the place of ours, where they ask for what the agent must answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import ConfigurationError
from infra.store.artifacts import ArtifactRef
from tasks.augment.agents import AGENTS, COMPARISON, EXPANSION, NAMING, SELECTION
from tasks.augment.own_prompts import Prompts, write
from tasks.augment.settings import Augmentation
from tasks.augment.stage import Augment
from tasks.rows import Row

OWN = "Score like a lawyer. JSON with informativeness, helpfulness, generality, reason."


def test_what_is_written_out_reads_back_as_it_is_shipped(tmp_path: Path) -> None:
    written = write(tmp_path / "prompts")
    beside = [NAMING.name, COMPARISON.name]
    assert sorted(path.stem for path in written) == sorted([*beside, *(agent.name for agent in AGENTS)])
    own = Prompts(str(tmp_path / "prompts"))
    assert [agent.prompt for agent in own.agents] == [agent.prompt for agent in AGENTS]
    with pytest.raises(ConfigurationError, match="holds naming.jinja already"):
        write(tmp_path / "prompts")


def test_a_prompt_of_ones_own_is_asked_by(tmp_path: Path) -> None:
    (tmp_path / "selection.jinja").write_text(OWN)
    (tmp_path / "notes.md").write_text("not a prompt")
    prompts = Prompts(str(tmp_path))
    assert prompts[SELECTION].messages(Row(instruction="x"))[0]["content"] == OWN
    assert prompts[EXPANSION] is EXPANSION


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("grading", OWN, "grading.jinja in .* is the prompt of no agent"),
        ("selection", "", "selection.jinja in .* is empty"),
        ("selection", "{% if %}", "selection.jinja, line 1: no template"),
        ("selection", OWN + " {{ n }}", r"selection.jinja asks for \{\{ n \}\}, which the agent is not told"),
        ("expansion", "Write instructions.", r"expansion.jinja does not use \{\{ n \}\}"),
        ("selection", OWN.replace("generality", "x"), 'does not ask for the field "generality"'),
    ],
)
def test_a_prompt_that_cannot_work_is_refused_in_one_sentence(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / f"{name}.jinja").write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        Prompts(str(tmp_path))


def test_a_folder_without_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no .jinja files: `distilflow prompts` writes some"):
        Prompts(str(tmp_path))
    with pytest.raises(ConfigurationError, match="there is no folder"):
        Prompts(str(tmp_path / "nowhere"))


def test_a_prompt_is_rendered_in_a_sandbox(tmp_path: Path) -> None:
    (tmp_path / "selection.jinja").write_text(OWN + "{{ ''.__class__.__mro__ }}")
    with pytest.raises(Exception, match="unsafe"):
        Prompts(str(tmp_path))[SELECTION].messages(Row(instruction="x"))


def test_what_the_prompts_say_changes_the_rows_and_where_they_lie_does_not(tmp_path: Path) -> None:
    def fingerprint(folder: Path | None) -> str:
        seeds = ArtifactRef(kind="seeds", uri="s3://b/seeds/f/", sha256="s", fingerprint="f")
        options = Augmentation(prompts=str(folder) if folder else None)
        return Augment(seeds=seeds, agent_model="m", options=options).workspace().fingerprint

    for name, text in (("a", OWN), ("b", OWN), ("c", OWN + " Be kind.")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "selection.jinja").write_text(text)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert len({fingerprint(folder) for folder in (None, tmp_path / "a", tmp_path / "c")}) == 3
