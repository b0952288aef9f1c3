"""Over how many GPUs a model is spread: the fewest that hold it, as vLLM can split it, by the plan's own estimate."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import devices
from infra.devices import Gpus
from infra.errors import ConfigurationError
from tasks.engines.memory import BF16, generation_memory, least_parallel, scoring_memory, splits
from tasks.engines.scoring import vllm_options
from tasks.evaluate.parallel import generation_parallel, most_parallel
from tasks.evaluate.settings import Evaluation
from tasks.logits.parallel import check_spread, scoring_engines, scoring_parallel
from tasks.logits.settings import Scoring
from tasks.models import ModelSource
from tasks.plan.sizes import QWEN2_5, size_of

GIB = 2**30
H100, L4 = 79 * GIB, 22 * GIB


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """A Qwen2.5 as far as its config goes."""

    def named(name: str) -> ModelSource:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", **QWEN2_5[name]}))
        return ModelSource(name=name, path=str(folder))

    return named


@pytest.mark.parametrize(
    ("name", "memory", "wanted"),
    [("0.5B", H100, 1), ("7B", H100, 1), ("14B", H100, 1), ("32B", H100, 1), ("72B", H100, 4), ("7B", L4, 2)],
)
def test_a_qwen_is_scored_with_on_the_fewest_gpus_that_hold_it(model: Any, name: str, memory: int, wanted: int) -> None:
    said: list[str] = []
    assert scoring_parallel(Scoring(), model(name), Gpus(8, memory), said.append) == wanted
    assert said == [f"{name} is spread over {wanted} of 8 GPUs of {memory // GIB} GiB: the fewest that hold it"]


def test_fp32_takes_twice_the_gpus_of_bf16(model: Any) -> None:
    eight, large = Gpus(8, H100), model("32B")
    assert [scoring_parallel(Scoring(dtype=dtype), large, eight) for dtype in ("bfloat16", "float32")] == [1, 2]
    by = [Evaluation(dtype=dtype) for dtype in ("auto", "float32")]
    assert [most_parallel(how, [large], 2304, eight) for how in by] == [1, 2]


def test_a_number_that_somebody_set_stands_and_a_cpu_is_one() -> None:
    nowhere = ModelSource(name="unread", path="/nowhere")
    assert scoring_parallel(Scoring(tensor_parallel=3), nowhere, Gpus(1, 1)) == 3
    assert generation_parallel(Evaluation(tensor_parallel=3), nowhere, 100, Gpus(1, 1)) == 3
    assert scoring_parallel(Scoring(), nowhere, None) == generation_parallel(Evaluation(), nowhere, 100, None) == 1


def test_parts_of_the_layers_take_gpus_of_their_own_and_leave_less_to_each(model: Any) -> None:
    """72B over two parts of two GPUs each, where a part of one GPU would not hold its half; two such fit on eight."""
    how = Scoring(pipeline_parallel=2)
    parallel = scoring_parallel(how, model("72B"), Gpus(8, H100))
    assert (parallel, scoring_engines(how, parallel, Gpus(8, H100))) == (2, 2)
    assert how.model_copy(update={"tensor_parallel": parallel}).gpus_each == 4
    with pytest.raises(ConfigurationError, match="each on 4 of the 6 GPUs here"):
        scoring_engines(how.model_copy(update={"engines": 2}), 2, Gpus(6, H100))
    with pytest.raises(ValueError, match=r"pipeline_parallel above 1 needs scoring\.engine=vllm"):
        Scoring(engine="transformers", pipeline_parallel=2)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_both_ways_of_spreading_reach_the_engine(on_gpu: bool) -> None:
    told = vllm_options(on_gpu, "auto", 4, 0.9, 4096, 2)
    assert (told["tensor_parallel_size"], told["pipeline_parallel_size"]) == (4, 2)


def test_what_the_engine_cannot_spread_is_refused_in_one_sentence(model: Any) -> None:
    check_spread(Scoring(tensor_parallel=2), model("0.5B"), on_gpu=False)
    with pytest.raises(ConfigurationError, match=r"^scoring\.pipeline_parallel is 2, and vLLM's CPU engine cannot"):
        check_spread(Scoring(pipeline_parallel=2), model("0.5B"), on_gpu=False)
    check_spread(Scoring(pipeline_parallel=2), model("0.5B"), on_gpu=True)
    with pytest.raises(ConfigurationError, match="4 does not divide the 14 attention heads .* of 0.5B: use 1 or 2"):
        check_spread(Scoring(tensor_parallel=4), model("0.5B"), on_gpu=True)


def test_a_machine_that_is_too_small_is_refused_with_the_numbers(model: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        scoring_parallel(Scoring(), model("72B"), Gpus(2, H100))
    assert str(refused.value) == (
        "72B (135 GiB of weights in bf16) takes 74 GiB of each of 2 GPUs, and vLLM may take 90% of 79 GiB: "
        "use more or larger GPUs, a smaller model, or a lower scoring.max_batched_tokens"
    )
    with pytest.raises(ConfigurationError, match="one GPU, and vLLM may take 90% of 79 GiB"):
        generation_parallel(Evaluation(), model("72B"), 2304, Gpus(1, H100))


def test_each_model_that_answers_has_a_number_of_its_own(model: Any) -> None:
    """vLLM cannot spread the 0.5B's 14 heads over the eight GPUs that its teacher takes."""
    eight = Gpus(8, 24 * GIB)
    assert [generation_parallel(Evaluation(), model(name), 2304, eight) for name in ("0.5B", "72B")] == [1, 8]
    assert splits(size_of("0.5B", None), 8) == [1, 2]


def test_gpus_of_which_the_driver_says_nothing_are_all_taken(model: Any) -> None:
    assert scoring_parallel(Scoring(), model("14B"), Gpus(6)) == 4


@given(
    st.sampled_from(sorted(QWEN2_5)), st.integers(1, 16), st.integers(8, 200), st.integers(256, 16_384), st.booleans()
)
def test_the_choice_fits_and_half_of_it_does_not(name: str, gpus: int, gib: int, tokens: int, scores: bool) -> None:
    size, room = size_of(name, None), 0.9 * gib * GIB

    def takes(parallel: int) -> int:
        if scores:
            return scoring_memory(size, BF16, 2048, tokens, parallel)
        return generation_memory(size, BF16, 2304, parallel)

    chosen = least_parallel(size, Gpus(gpus, gib * GIB), 0.9, takes)
    possible = splits(size, gpus)
    assert all(size.heads % n == 0 and (size.kv_heads % n == 0 or n % size.kv_heads == 0) for n in possible)
    if chosen is None:
        assert all(takes(n) > room for n in possible)
    else:
        assert chosen in possible
        assert takes(chosen) <= room
        assert all(takes(n) > room for n in possible if n < chosen)


def test_key_value_heads_that_are_fewer_than_gpus_are_held_by_several() -> None:
    """Of the 7B's four each GPU of eight would hold one: no more than of four."""
    size = size_of("7B", None)
    longer = [generation_memory(size, BF16, 10_000, n) - generation_memory(size, BF16, 0, n) for n in (2, 4, 8)]
    assert longer[0] == pytest.approx(2 * longer[1], abs=4)
    assert longer[1] == pytest.approx(longer[2], abs=4)


def test_the_driver_is_asked_for_the_smallest_of_the_gpus_that_are_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$3" = "--id=2,5" ] && printf "81559\\n40960\\n"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert devices.here() == Gpus(2, 40960 << 20)
    tool.unlink()
    assert devices.here() == Gpus(2, None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.here() is None


def test_a_slice_of_a_gpu_has_the_memory_of_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `nvidia-smi -L` lists them; asked for its memory it would tell that of the card."""
    listed = (
        "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5e1a7c20)\n"
        "  MIG 3g.40gb     Device  0: (UUID: MIG-aa)\n"
        "  MIG 1g.10gb+me  Device  1: (UUID: MIG-bb)\n"
        "  MIG 1c.2g.20gb  Device  2: (UUID: MIG-cc)\n"
    )
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nif [ $1 = -L ]; then cat <<'END'\n{listed}END\nelse echo 81559; fi\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    for named, gib in (("MIG-aa", 40), ("MIG-cc,MIG-aa", 20), ("MIG-bb", 10)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert devices.here() == Gpus(len(named.split(",")), int(0.95 * GIB) * gib)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert devices.here() == Gpus(1, 81559 << 20)
