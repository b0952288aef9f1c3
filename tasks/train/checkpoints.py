"""DeepSpeed checkpoints in the artifact's workspace: whole or not there, the last good ones kept.

Objects under `checkpoint/step-N/`, then `checkpoint/latest.json`, which is what a resumed run believes. Training
goes on while a checkpoint travels; the next one waits until it has arrived.
"""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from infra import child, storage
from infra.artifacts import Workspace
from infra.errors import TransientError

_LATEST = "checkpoint/latest.json"


class Uploads:
    """Saves checkpoints, and keeps the last `kept` in storage. All ranks have one; the first rank's uploads."""

    def __init__(self, work: Workspace, kept: int, reporter: child.Reporter):
        self._work = work
        self._kept = kept
        self._reporter = reporter
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Uploads:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def save(self, engine: Any, scratch: Path, step: int, curve: list[list[float]], layout: dict[str, int]) -> None:
        """Write a checkpoint from all ranks to `scratch`, and send it on its way.

        Storage that is away costs the checkpoint and not the run: it is said, and the next one is tried.
        """
        self._finish()
        tag = f"step-{step}"
        engine.save_checkpoint(str(scratch), tag=tag)
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 0:
            latest = {"tag": tag, "step": step, "curve": [list(point) for point in curve], "layout": layout}
            self._under_way = self._pool.submit(self._upload, scratch / tag, latest)

    def _upload(self, folder: Path, latest: dict[str, Any]) -> None:
        try:
            self._work.put_folder(f"checkpoint/{latest['tag']}/", folder)
            self._work.put_json(_LATEST, latest)
            for tag in self._tags()[: -self._kept]:
                for name in list(storage.keys(f"{self._work.uri}checkpoint/{tag}/")):
                    storage.delete(f"{self._work.uri}checkpoint/{tag}/{name}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _tags(self) -> list[str]:
        """Checkpoints in storage, the oldest first."""
        names = {name.partition("/")[0] for name in storage.keys(self._work.uri + "checkpoint/")}
        return sorted((n for n in names if n.startswith("step-")), key=lambda n: int(n.removeprefix("step-")))

    def _finish(self) -> None:
        if self._under_way is not None:
            try:
                self._under_way.result()
            except TransientError as error:
                self._reporter.event("checkpoint_lost", why=str(error))
            self._under_way = None


def download(work: Workspace, scratch: Path, layout: dict[str, int]) -> dict[str, Any] | None:
    """Bring the last checkpoint to `scratch`; its step and loss curve, or None where there is none.

    One that another number of ranks or another ZeRO stage left is of no use: the run starts anew.
    """
    if not work.has(_LATEST):
        return None
    state: dict[str, Any] = work.get_json(_LATEST)
    if state["layout"] != layout:
        return None
    for name in storage.keys(f"{work.uri}checkpoint/{state['tag']}/"):
        storage.download(f"{work.uri}checkpoint/{state['tag']}/{name}", scratch / state["tag"] / name)
    return state
