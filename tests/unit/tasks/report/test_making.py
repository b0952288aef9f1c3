"""What a variant took: the stages that it comes from, whatever the order, and none that only measures it."""

from typing import Any

import pytest

from tasks.report.data import StageSummary
from tasks.report.making import device_seconds, stages_of
from tests.support.report_sample import sample_report

_SECONDS = {
    "seeds": 1,
    "augment": 2,
    "sft": 4,
    "logits": 8,
    "sft_control": 16,
    "kd": 32,
    "evaluate": 64,
    "rollout_1": 128,
    "kd_round_1": 256,
    "kd_round_2": 512,
    "kd_continued": 1024,
    "kd_before_sft": 2048,
}


@pytest.mark.parametrize(
    ("variant", "settings", "seconds"),
    [
        ("base", {}, 0),
        ("teacher", {}, 0),
        ("sft", {}, 2 + 4),
        ("sft_control", {}, 2 + 4 + 16),
        ("kd", {}, 2 + 4 + 8 + 32 + 2048),
        ("kd", {"order": "KD alone"}, 2 + 8 + 32 + 2048),
        ("sft_control", {"order": "KD alone"}, 2 + 4 + 16),
        ("round_1", {}, 2 + 4 + 8 + 32 + 2048 + 128 + 256),
        ("round_2", {}, 2 + 4 + 8 + 32 + 2048 + 128 + 256 + 512),
        ("kd_continued", {}, 2 + 4 + 8 + 32 + 2048 + 1024),
    ],
)
def test_a_variant_took_what_the_stages_took_that_it_comes_from(
    variant: str, settings: dict[str, Any], seconds: int
) -> None:
    stages = [
        StageSummary(name=name, seconds=took, uri=f"s3://b/{name}/", fingerprint="f", facts={"ranks": 2})
        for name, took in _SECONDS.items()
    ]
    data = sample_report(stages=stages, settings=settings)
    assert device_seconds(data, variant) == 2 * seconds
    assert [stage.name for stage in stages_of(data, "sft")] == ["augment", "sft"]
