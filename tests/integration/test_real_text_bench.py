"""The bench on a pretrained model goes its whole way with a tiny random Gemma 3, and goes on where it was."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.models import ModelSource, load_tokenizer
from tasks.shipped import DEMO
from tests.bench._real_model import cut, kept_layers
from tests.bench.real_text import run
from tests.support.families import tiny_config
from tests.support.words import WORDS

LAYERS = ["sliding_attention"] * 2 + ["full_attention"] * 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With windows that rows are longer than, as the real one has, and the demo's tokenizer and template."""
    place = tmp_path_factory.mktemp("models") / "gemma"
    shutil.copytree(DEMO / "student", place, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    size = len(load_tokenizer(ModelSource(name="demo", path=str(DEMO / "student"))))
    shape = {"num_hidden_layers": 4, "layer_types": LAYERS, "tie_word_embeddings": True, "vocab_size": size}
    torch.manual_seed(0)
    config = tiny_config("gemma3_text", **shape, max_position_embeddings=512)
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    return place


@pytest.mark.timeout(600)  # twelve starts of programs
def test_the_bench_tells_every_arm_and_continues_from_what_is_there(
    services: object, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dice, rows = random.Random(0), tmp_path / "rows.jsonl"
    texts = [(" ".join(dice.sample(WORDS, 5)), " ".join(dice.sample(WORDS[:4], 2))) for _ in range(40)]
    rows.write_text("\n".join(json.dumps({"instruction": given, "output": answer}) for given, answer in texts))
    words = [f"--model={model}", f"--rows={rows}", "--seeds=0", "--rows-heldout=6", "--max-length=128", "--batch=8"]
    words += [
        "--teacher-steps=0",
        "--sft-steps=20",
        "--steps=3",
        "--round-steps=2",
        "--rate=5e-3",
        "--max-new-tokens=48",
    ]
    words += ["--recipes", "2:bucket", "4:bucket"]
    found = run(words)
    assert set(found["arms"]) == {
        *("base", "teacher", "sft", "sft_control", "kd k=2 bucket", "kd k=4 bucket", "kd_continued", "round_1")
    }
    assert found["arms"]["teacher"]["kl_to_teacher"]["all"][0] == 0
    assert found["topk_mass"][2] < found["topk_mass"][4] < 1
    assert all(math.isfinite(end) for end in found["kl_lower_than_control"]["kd k=4 bucket"])
    assert found["arms"]["round_1"]["own_text_kl"]["answers"] > 0
    told = capsys.readouterr().err
    assert '"kd":' in told
    assert "| round_1 |" in told

    assert run(words) == found
    assert '"seconds":' not in capsys.readouterr().err  # no stage was made again


def test_a_cut_model_is_the_layers_that_were_kept(model: Path, tmp_path: Path) -> None:
    """Their kinds of attention too: the whole model, made to skip the others, says the same."""
    kept = kept_layers(4, 3)
    assert kept == [0, 3]
    ids = torch.arange(5, 25)[None]
    whole = AutoModelForCausalLM.from_pretrained(model).eval()
    ours = AutoModelForCausalLM.from_pretrained(cut(model, tmp_path / "cut", kept)).eval()
    assert ours.config.layer_types == ["sliding_attention", "full_attention"]
    for place in (1, 2):
        whole.model.layers[place].forward = lambda hidden, *_args, **_kwargs: hidden
    with torch.no_grad():
        assert torch.allclose(ours(ids).logits, whole(ids).logits, atol=1e-5)
