"""What of the benchmarks' questions no training row may hold: their passages, as hashes."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import numpy as np

from infra.stage import Made, OneArtifact, View
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.evaluate.benchmarks import artifacts, data_files
from tasks.evaluate.benchmarks.settings import Benchmarks
from tasks.rows import PASSAGES
from tasks.text.leaks import passages_of

KIND = "protect"
STAGE_VERSION = 1


class ProtectBenchmarks(OneArtifact):
    """The passages of the benchmarks that a run names. lm-eval's tasks bring their own data, and are not among them."""

    kind: ClassVar = "protect"
    makes: ClassVar = (KIND,)
    doing: ClassVar = "reading the benchmarks' questions"

    options: Benchmarks

    @property
    def is_needed(self) -> bool:
        return bool(artifacts.asked_for(self.options))

    def workspace(self) -> Workspace:
        asked = artifacts.asked_for(self.options)
        return Workspace(
            KIND, STAGE_VERSION, {name: data_files.digest(getattr(self.options, name)) for name in asked}, {}
        )

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        """A passage that several questions share is how they are put, and not what they ask."""
        asked = [
            question
            for name in artifacts.asked_for(self.options)
            for question in artifacts.load(name, self.options.model_copy(update={"max_questions": None}))
        ]
        found = Counter(passage for one in asked for passage in {p for turn in one.turns for p in passages_of(turn)})
        alone = sorted(passage for passage, questions in found.items() if questions == 1)
        work.put(PASSAGES, np.array(alone, "<u8").tobytes())
        return work.publish((PASSAGES,), {"questions": len(asked), "passages": len(alone)}, {})

    def show(self, made: Made, view: View) -> str:
        counts = made.shown.counts
        return f"{counts['passages']:,} passages of {counts['questions']:,} questions are kept out of training"
