"""A training stage in a process of its own: what a flow, or a node of a cluster, is to the operating system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from infra.store.artifacts import ArtifactRef
from tasks.train.settings import Training, TrainingRun

_PROGRAM = """
import json, sys
from infra.store.artifacts import ArtifactRef, Workspace
from infra.errors import DistilflowError
from tasks.models import resolve
from tasks.train import stage
from tests.support.stages import training_workspace
from tasks.train.settings import Training, TrainingRun
told = json.loads(sys.argv[1])
data, student = ArtifactRef.model_validate(told["data"]), resolve("demo", "student")
training, run = Training.model_validate(told["training"]), TrainingRun.model_validate(told["run"])
made = training_workspace("sft", student, data, training, 0)
work = Workspace(made.kind, told["version"], made.spec, made.inputs)
try:
    stage.train(work, "sft", student, data, training, run, 0, lambda event: print(json.dumps(event), flush=True))
except DistilflowError as error:
    print(json.dumps({"event": "failed", "why": f"{type(error).__name__}: {error}"}), flush=True)
    sys.exit(error.exit_code)
"""


class TrainingProcess:
    """SFT of the demo student; `version` says which artifact it makes, `env` what differs from this process's."""

    def __init__(self, rows: ArtifactRef, training: Training, run: TrainingRun, version: int, env: dict[str, str]):
        told = {"data": rows.model_dump(), "training": training.model_dump(), "run": run.model_dump()}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(told | {"version": version})],
            env={**os.environ, **env},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.events: list[dict[str, Any]] = []
        self._reads = threading.Thread(target=self._read, daemon=True)
        self._reads.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def ends(self, timeout_s: float = 600) -> int:
        """Its exit code, when all its events are there."""
        code = self.process.wait(timeout_s)
        self._reads.join(timeout_s)
        return code
