"""The table of the benchmark on real text: arms of several seeds on the same held-out rows, with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from infra.store.artifacts import ArtifactReader, ArtifactRef
from tasks.evaluate.heldout.predictions import from_parquet, per_row
from tasks.stats.intervals import Interval, PerRow, bootstrapped, bootstrapped_difference

METRICS = {
    "cross_entropy": "cross-entropy",
    "kl_to_teacher": "KL to the teacher",
    "topk_kl": "of it, over its top K and a bucket",
    "top1_agreement": "top-1 agreement",
}
_OWN_TEXT = "KL on its own text"
_SAME_FOR_ALL_SEEDS = ("base", "teacher")


class Arms:
    """What was found of each arm, by seed."""

    def __init__(self) -> None:
        self._heldout: dict[str, dict[int, dict[str, PerRow]]] = {}
        self._own_text: dict[str, dict[int, PerRow]] = {}

    def add(self, arm: str, seed: int, evaluation: ArtifactRef) -> dict[str, Any] | None:
        """What is told of it; None where it was there already."""
        of_arm = self._heldout.setdefault(arm, {})
        if seed in of_arm or (of_arm and arm in _SAME_FOR_ALL_SEEDS):
            return None
        rows = from_parquet(ArtifactReader(evaluation).read("predictions.parquet")).sort_values("row_id")
        of_arm[seed] = {metric: values for metric, values in per_row(rows).items() if metric in METRICS}
        return {"arm": arm, "seed": seed, **{name: round(value.value, 4) for name, value in of_arm[seed].items()}}

    def add_own_text(self, arm: str, seed: int, kl: PerRow) -> dict[str, Any]:
        """The KL to the teacher of each of the student's own answers."""
        self._own_text.setdefault(arm, {})[seed] = kl
        return {"arm": arm, "seed": seed, "own_text_kl": round(kl.value, 4), "answers": len(kl.sums)}

    def summary(self, control: str, continued: str) -> dict[str, Any]:
        arms = {
            arm: {metric: _shown(by_seed, metric) for metric in METRICS}
            | ({"own_text_kl": _own(self._own_text[arm])} if arm in self._own_text else {})
            for arm, by_seed in self._heldout.items()
        }
        return {
            "n": len(next(iter(self._heldout[control].values()))["cross_entropy"].sums),
            "arms": arms,
            "kl_lower_than_control": self._lower([arm for arm in self._heldout if arm.startswith("kd")], control),
            "kl_lower_than_continued": self._lower(
                [arm for arm in self._heldout if arm.startswith("round")], continued
            ),
            "kl_fell_from_sft": self._falls(),
        }

    def _lower(self, arms: Iterable[str], than: str) -> dict[str, list[float]]:
        """By how many nats a token the KL of each arm is lower than another's, on the same rows of all seeds."""
        return {
            arm: _numbers(
                bootstrapped_difference(*(_pooled(self._heldout[name], "kl_to_teacher") for name in (than, arm)))
            )
            for arm in arms
        }

    def _falls(self) -> dict[str, float]:
        """By how many nats a token KL fell from the fine-tuned student's in each arm that began with it."""
        value = {arm: _pooled(by_seed, "kl_to_teacher").value for arm, by_seed in self._heldout.items()}
        return {
            arm: round(value["sft"] - kl, 4) for arm, kl in value.items() if arm not in ("sft", *_SAME_FOR_ALL_SEEDS)
        }


def markdown(found: Mapping[str, Any]) -> str:
    titles = ["arm", *METRICS.values(), _OWN_TEXT]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for arm, metrics in found["arms"].items():
        cells = [_cell(metrics.get(name)) for name in (*METRICS, "own_text_kl")]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(shown: Mapping[str, Any] | None) -> str:
    if shown is None:
        return ""
    estimate, low, high = shown["all"]
    return f"{estimate:.3f} ({low:.3f} to {high:.3f})"


def _shown(by_seed: Mapping[int, Mapping[str, PerRow]], metric: str) -> dict[str, Any]:
    each = {seed: round(found[metric].value, 4) for seed, found in by_seed.items()}
    return {"all": _numbers(bootstrapped(_pooled(by_seed, metric))), "by_seed": each}


def _own(by_seed: Mapping[int, PerRow]) -> dict[str, Any]:
    """Answers of different seeds are different texts."""
    together = PerRow(*(np.concatenate([getattr(kl, name) for kl in by_seed.values()]) for name in ("sums", "counts")))
    each = {seed: round(kl.value, 4) for seed, kl in by_seed.items()}
    return {"all": _numbers(bootstrapped(together)), "by_seed": each, "answers": len(together.sums)}


def _pooled(by_seed: Mapping[int, Mapping[str, PerRow]], metric: str) -> PerRow:
    """Over seeds, row by row: what is drawn anew is the row, in all seeds at once."""
    found = [values[metric] for values in by_seed.values()]
    return PerRow.of(np.sum([one.sums for one in found], axis=0), np.sum([one.counts for one in found], axis=0))


def _numbers(interval: Interval) -> list[float]:
    return [round(value, 4) for value in (interval.estimate, interval.low, interval.high)]
