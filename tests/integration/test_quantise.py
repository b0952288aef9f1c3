"""A trained student in every format, by the real stage: its weights within the format's step, what is evaluated as the
format computes it, and what a kill leaves behind."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flows.commands.publish import publish
from infra.errors import TransientError
from infra.processes import program
from infra.stage import Unseen, make
from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace, facts_of
from tasks.quantise import llama
from tasks.quantise.settings import Format
from tasks.quantise.stage import Quantise
from tasks.shipped import DEMO
from tests.support.quantising import kd_artifact, loaded, prompt, random_student

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("cyllama") is None, reason="the extra `quantise` is not installed"
)


@pytest.fixture(scope="module")
def demo(services: object) -> ArtifactRef:
    return kd_artifact(DEMO / "student", "the demo")


@pytest.fixture(scope="module")
def wide(services: object, tmp_path_factory: pytest.TempPathFactory) -> ArtifactRef:
    folder = random_student(tmp_path_factory.mktemp("wide") / "model", "qwen2", tie_word_embeddings=True)
    return kd_artifact(folder, "256 wide")


def _made(student: ArtifactRef, form: Format) -> ArtifactRef:
    stage = Quantise(name=f"kd_{form}", student=student, format=form)
    return stage.result(make(stage, Unseen()).refs)


def _weights(student: ArtifactRef) -> dict[str, torch.Tensor]:
    tensors = load_file(ArtifactReader(student).folder("model/") / "model.safetensors")
    return {name: tensor.float() for name, tensor in tensors.items()}


# Of the largest weight of a block: a step of 8 bits; of Q5_0, which K-quants of narrow rows fall back to; of Q4_K.
_STEPS = {"q8_0": 1 / 127, "q4_k_m": 1 / 7}


@pytest.mark.parametrize("form", ["q8_0", "q4_k_m"])
def test_a_gguf_file_holds_the_students_weights_and_llama_cpp_computes_what_is_evaluated(
    demo: ArtifactRef, form: Format
) -> None:
    made = _made(demo, form)
    facts, counts = facts_of(made), made.counts
    assert counts["quantised"] == 22
    assert counts["fell_back"] == (0 if form == "q8_0" else 22)  # rows of 128 and 320 weights
    assert all(facts["texts_alike"])
    assert facts["agreed"] >= 0.95 * facts["tokens"]
    assert counts["bytes"] == ArtifactReader(made).folder("gguf/").joinpath(f"student-{form}.gguf").stat().st_size
    theirs, ours = _weights(demo), _weights(made)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        if weight.ndim < 2:
            assert torch.equal(ours[name], weight)
            continue
        blocks, rounded = weight.reshape(-1, 32), ours[name].reshape(-1, 32)
        step = _STEPS[form] * blocks.abs().amax(1, keepdim=True)
        assert ((rounded - blocks).abs() <= 0.51 * step + 1e-3 * blocks.abs()).all(), name
        assert not torch.equal(rounded, blocks)


def test_rows_that_k_quants_divide_are_in_four_and_six_bits(wide: ArtifactRef) -> None:
    made = _made(wide, "q4_k_m")
    assert made.counts["fell_back"] == 0
    assert facts_of(made)["types"].keys() == {"Q4_K", "Q6_K"}
    assert made.counts["bytes"] < 0.25 * made.counts["student_bytes"]


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_what_is_compressed_is_the_weight_rounded_and_computes_as_its_numbers_say(
    demo: ArtifactRef, form: Format
) -> None:
    made = _made(demo, form)
    folder = ArtifactReader(made).folder("model/")
    stored = load_file(folder / "model.safetensors")
    theirs = _weights(demo)
    assert made.counts["quantised"] == 21 == sum(name.endswith("weight_scale") for name in stored)
    by_hand = {}
    for name, weight_OI in theirs.items():
        if (scale_O1 := stored.get(f"{name}_scale")) is None:
            assert torch.equal(stored[name].float(), weight_OI)
            by_hand[name] = weight_OI
            continue
        by_hand[name] = stored[name].float() * scale_O1.float()
        step = scale_O1.float() if form == "int8" else weight_OI.abs() / 8 + scale_O1.float() / 512
        assert ((by_hand[name] - weight_OI).abs() <= 0.52 * step + 1e-3 * weight_OI.abs()).all(), name
    reference: Any = loaded(DEMO / "student")
    reference.load_state_dict(by_hand, strict=False)
    ids = prompt()
    with torch.inference_mode():
        ours, exact = loaded(folder)(ids).logits, reference(ids).logits
        plain = loaded(DEMO / "student")(ids).logits
    # what comes into a layer is rounded too, by the token
    assert 0 < (ours - exact).abs().mean() < 0.1 * plain.abs().mean()
    assert (ours.argmax(-1) == exact.argmax(-1)).float().mean() > 0.9


DIES = """
import os, signal, sys
from pathlib import Path
from infra.processes import child
from tasks.quantise import program

program._tried = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
child.run(program.main, Path(sys.argv[-1]))
"""


def test_after_a_kill_the_file_that_was_made_is_not_made_again(
    wide: ArtifactRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed where llama.cpp is asked, when the file is there."""
    stage = Quantise(name="kd_q8_0", student=wide, format="q8_0")
    with monkeypatch.context() as dying:
        dying.setattr(program, "command", lambda module: [sys.executable, "-c", DIES])
        with pytest.raises(TransientError, match="exit code 137"):
            make(stage, Unseen())
    work = stage.workspace()
    (name,) = [name for name in storage.keys(work.uri) if name.startswith("gguf/")]
    before = storage.head(work.uri + name)
    assert not work.find()
    assert before
    made = stage.result(make(stage, Unseen()).refs)
    after = storage.head(work.uri + name)
    assert after
    assert after == before  # its time too
    assert ArtifactReader(made).names("model/")


def test_what_is_published_is_the_file_and_how_to_run_it(
    rows: ArtifactRef, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = Workspace("logits", 1, {"for": "quantised"}, {"rows": rows})
    own = shutil.copytree(DEMO / "student", tmp_path / "own")
    (own / "generation_config.json").write_text("{}")  # equal files would be quantised once for two students
    student = kd_artifact(own, "publish", data=scores.find() or scores.publish((), {}, {}))
    made = _made(student, "q4_k_m")
    to = tmp_path / "student"
    publish(str(to), made.uri, None, "kd_q4_k_m")
    assert [path.name for path in (to / "model").iterdir()] == ["student-q4_k_m.gguf"]
    assert (to / "dataset" / "train.parquet").is_file()
    assert f"llama-server -m {to / 'model' / 'student-q4_k_m.gguf'}" in capsys.readouterr().out
    with llama.opened(to / "model" / "student-q4_k_m.gguf", 1) as published:
        assert published.tokens("SELECT 1;")
