"""DeepSpeed checkpoints in the artifact's workspace: whole or not there, the last good ones kept.

Objects under `checkpoint/step-N-LAUNCH/`, then `checkpoint/latest.json`, which is what a resumed run believes. Every
node sends what its own ranks wrote, and the first rank writes `latest.json` when all parts have arrived. Training
goes on while a checkpoint travels; the next one waits until it has arrived.

A run that goes on with another number of ranks gets its checkpoint in DeepSpeed's universal form.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint.ds_to_universal import main as convert

from infra import child, storage
from infra.artifacts import Workspace
from infra.errors import TransientError
from tasks.train.ranks import Rank

_LATEST = "checkpoint/latest.json"
_STATE = "state.json"
_POLL_S = 0.2


class Uploads:
    """Saves checkpoints, and keeps the last `kept` in storage. All ranks have one; the first of each node uploads.

    `launch` makes the names of this start of the program its own, so that no file of one that was killed is among
    them; `whole` are the checkpoints in storage by now, the oldest first.
    """

    def __init__(self, work: Workspace, kept: int, reporter: child.Reporter, rank: Rank, launch: str, whole: list[str]):
        self._work = work
        self._kept = kept
        self._reporter = reporter
        self._rank = rank
        self._launch = launch
        self._whole = whole
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        self._given_up = threading.Event()

    def __enter__(self) -> Uploads:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        self._given_up.set()
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def save(self, engine: Any, scratch: Path, step: int, curve: list[list[float]], layout: dict[str, int]) -> None:
        """Write a checkpoint from all ranks to `scratch`, and send it on its way.

        Storage that is away costs the checkpoint and not the run: it is said, and the next one is tried.
        """
        self._finish()
        tag = f"step-{step}-{self._launch}"
        engine.save_checkpoint(str(scratch), tag=tag)
        torch.distributed.barrier()
        if self._rank.leads_node:
            latest = {"tag": tag, "step": step, "curve": [list(point) for point in curve], "layout": layout}
            self._under_way = self._pool.submit(self._upload, scratch / tag, latest)

    def _upload(self, folder: Path, latest: dict[str, Any]) -> None:
        tag = latest["tag"]
        arrived = False
        try:
            self._work.put_folder(f"checkpoint/{tag}/", folder)
            arrived = True
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if self._rank.nodes > 1:
                _store().set(f"{tag}/{self._rank.node}", str(arrived))
        if not self._rank.is_first:
            return
        for node in range(1, self._rank.nodes):
            if not self._has_arrived(f"{tag}/{node}"):
                raise TransientError(f"the part of node {node} did not arrive")
        self._whole = [*self._whole, tag][-self._kept :]
        self._work.put_json(_LATEST, latest | {"whole": self._whole})
        for name in list(storage.keys(f"{self._work.uri}checkpoint/")):
            if "/" in name and name.partition("/")[0] not in self._whole:
                storage.delete(f"{self._work.uri}checkpoint/{name}")

    def _has_arrived(self, part: str) -> bool:
        """Whether another node's part has; waits until that is known. (A thread must not take part in collectives.)"""
        store = _store()
        while not store.check([part]):
            if self._given_up.wait(_POLL_S):
                return False
        return bool(store.get(part) == b"True")

    def _finish(self) -> None:
        if self._under_way is not None:
            try:
                self._under_way.result()
            except TransientError as error:
                self._reporter.event("checkpoint_lost", why=str(error))
            self._under_way = None


def download(work: Workspace, scratch: Path, layout: dict[str, int], rank: Rank) -> None:
    """Bring the last checkpoint to `scratch`, in the form that `layout` (ranks, ZeRO stage) can load.

    DeepSpeed's own answer to another number of ranks is its universal form. To another stage it has none. Of a
    checkpoint that stays as it is, a node takes the parts of its own ranks.
    """
    if not work.has(_LATEST):
        return
    state: dict[str, Any] = work.get_json(_LATEST)
    state |= {"usable": state["layout"]["zero_stage"] == layout["zero_stage"], "universal": False}
    if state["usable"]:
        tag, same = state["tag"], state["layout"] == layout
        for name in storage.keys(f"{work.uri}checkpoint/{tag}/"):
            if not same or _rank_of(name) in (None, *rank.of_node):
                storage.download(f"{work.uri}checkpoint/{tag}/{name}", scratch / tag / name)
        state["universal"] = not same and _to_universal(scratch / tag)
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / _STATE).write_text(json.dumps(state))


def found(scratch: Path) -> dict[str, Any] | None:
    """What `download` left: tag, step, loss curve; whether it is `usable`, and in DeepSpeed's `universal` form."""
    state = scratch / _STATE
    return json.loads(state.read_text()) if state.exists() else None


def _rank_of(name: str) -> int | None:
    """The rank whose part a file is, or None where all ranks read it."""
    part = re.search(r"zero_pp_rank_(\d+)_", name)
    return int(part[1]) if part else None


def _store() -> Any:
    """The key-value store at which the ranks met; a thread may use it."""
    return torch.distributed.distributed_c10d._get_default_store()


def _to_universal(checkpoint: Path) -> bool:
    """Make a ZeRO checkpoint one that any number of ranks can load, in its place.

    False where it is none: without ZeRO every rank has the whole state, which any number can load as it is.
    """
    if not any(checkpoint.glob("*_optim_states.pt")):
        return False
    sharded = checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}-sharded"))
    convert(
        argparse.Namespace(
            input_folder=str(sharded),
            output_folder=str(checkpoint),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )
    shutil.rmtree(sharded)
    return True
