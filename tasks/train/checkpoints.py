"""DeepSpeed checkpoints in the artifact's workspace: whole or not there, the last good ones kept.

Objects under `checkpoint/step-N-LAUNCH/`, `state.json` last among them, then `checkpoint/latest.json`, which names the
whole ones and the launch that they belong to: a launch takes it over when it starts, and from then on no other can
write it. So of two that train one artifact (one was paused, and taken for dead) the older stops at its next
checkpoint, and deletes nothing of the newer. Every node sends what its own ranks wrote, and the first rank does the
rest when all parts have arrived. Training goes on while a checkpoint travels; the next one waits until it has arrived.

A checkpoint is data: it is checked against the digests in its state, and unpickled as torch's `weights_only` does,
which builds nothing but tensors and the few classes named here. A run that goes on with another number of ranks gets
its checkpoint in DeepSpeed's universal form.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from deepspeed.checkpoint.ds_to_universal import main as convert
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from pydantic import BaseModel, Field, ValidationError

from infra.errors import TransientError
from infra.processes import child
from infra.store import storage
from infra.store.artifacts import RelativeName, Workspace
from infra.store.claims import LeaseLost
from tasks.train.launch.ranks import Rank

_LATEST = "checkpoint/latest.json"
_STATE = "state.json"
_POLL_S = 0.2
_TRIES = 10
_CLASSES = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def load_data_only() -> None:
    """From here on nothing in this process is unpickled but tensors, plain data and what DeepSpeed puts beside them."""
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # DeepSpeed asks torch for the opposite
    torch.serialization.add_safe_globals(_CLASSES)


class State(BaseModel):
    """What `state.json` says of a checkpoint: believed as far as it is well-formed."""

    step: int = Field(ge=0)
    curve: list[list[float]]
    layout: dict[str, int]
    files: dict[RelativeName, str] = Field(description="sha256 by name")


class _Latest(BaseModel):
    whole: list[Annotated[str, Field(pattern=r"^step-\d+-\w+$")]]


@dataclass
class Owned:
    """`latest.json` as this launch wrote it last: the whole checkpoints, the oldest first, and the object's tag."""

    launch: str
    whole: list[str]
    tag: str


def take_over(work: Workspace, launch: str) -> Owned:
    """Make the workspace's checkpoints this launch's; those that are not whole go."""
    uri = work.uri + _LATEST
    for _ in range(_TRIES):
        found = storage.get_with_etag(uri)
        whole = [tag for tag in (_named(found[0]) if found else []) if _is_whole(work, tag)]
        data = json.dumps({"whole": whole, "launch": launch}).encode()
        tag = storage.put(uri, data, only_if_match=found[1]) if found else storage.put(uri, data, only_if_absent=True)
        if tag is not None:
            _delete(work, [name for name in _tags(work) if name not in whole])
            return Owned(launch, whole, tag)
    raise TransientError(f"others write {uri} again and again: run again")


class Uploads:
    """Saves checkpoints, and keeps the last `kept` in storage. All ranks have one; the first of each node uploads.

    The first rank has them `owned`. A launch makes the names of its checkpoints its own, so that no file of one that
    was killed is among them.
    """

    def __init__(
        self, work: Workspace, kept: int, reporter: child.Reporter, rank: Rank, launch: str, owned: Owned | None
    ):
        self._work = work
        self._kept = kept
        self._reporter = reporter
        self._rank = rank
        self._launch = launch
        self._owned = owned
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

        Storage that is away costs the checkpoint and not the run: it is said, and the next one is tried. Raises
        LeaseLost where another launch has taken over.
        """
        self._finish()
        tag = f"step-{step}-{self._launch}"
        engine.save_checkpoint(str(scratch), tag=tag)
        torch.distributed.barrier()
        if self._rank.leads_node:
            state = {"step": step, "curve": [list(point) for point in curve], "layout": layout}
            self._under_way = self._pool.submit(self._upload, scratch / tag, state)

    def _upload(self, folder: Path, state: dict[str, Any]) -> None:
        tag = folder.name
        arrived = False
        try:
            self._work.put_folder(_folder(tag), folder)
            arrived = True
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if self._rank.nodes > 1:
                _store().set(f"{tag}/{self._rank.node}", str(arrived))
        if self._owned is None:
            return
        for node in range(1, self._rank.nodes):
            if not self._has_arrived(f"{tag}/{node}"):
                raise TransientError(f"the part of node {node} did not arrive")
        self._publish(tag, state, self._owned)

    def _publish(self, tag: str, state: dict[str, Any], owned: Owned) -> None:
        """Make a checkpoint that has arrived the last one."""
        files = {name: _digest(self._work, tag, name) for name in storage.keys(self._work.uri + _folder(tag))}
        self._work.put_json(_folder(tag) + _STATE, {**state, "files": files})
        whole = [*owned.whole, tag][-self._kept :]
        data = json.dumps({"whole": whole, "launch": owned.launch}).encode()
        written = storage.put(self._work.uri + _LATEST, data, only_if_match=owned.tag)
        if written is None:
            _delete(self._work, [tag])
            raise LeaseLost(f"another run has taken over the training at {self._work.uri}: it goes on there")
        dropped = [name for name in owned.whole if name not in whole]
        owned.whole, owned.tag = whole, written
        _delete(self._work, dropped)

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
            except LeaseLost:
                raise
            except TransientError as error:
                self._reporter.event("checkpoint_lost", why=str(error))
            self._under_way = None


def download(work: Workspace, scratch: Path, layout: dict[str, int], rank: Rank) -> None:
    """Bring the last checkpoint to `scratch`, in the form that `layout` (ranks, ZeRO stage, bytes a weight) can load.

    DeepSpeed's own answer to another number of ranks is its universal form. To another stage or precision it has none.
    Of a checkpoint that stays as it is, a node takes the parts of its own ranks. One whose bytes are not those that
    were written is given up (TransientError: the next try goes on from the one before it).
    """
    whole = _named(work.read(_LATEST))
    if not whole or (state := _state(work, tag := whole[-1])) is None:
        return
    before = layout | state.layout
    usable, universal = {**before, "ranks": layout["ranks"]} == layout, False
    if usable:
        same = before == layout
        for name, digest in state.files.items():
            if not same or _rank_of(name) in (None, *rank.of_node):
                path = scratch / tag / name
                storage.download(f"{work.uri}{_folder(tag)}{name}", path)
                if storage.file_digest(path) != digest:
                    storage.delete(f"{work.uri}{_folder(tag)}{_STATE}")
                    raise TransientError(f"the checkpoint {tag} in {work.uri} is damaged ({name}): given up")
        universal = not same and _to_universal(scratch / tag)
    scratch.mkdir(parents=True, exist_ok=True)
    record = {"tag": tag, "step": state.step, "curve": state.curve, "usable": usable, "universal": universal}
    (scratch / _STATE).write_text(json.dumps(record))


def stage_of_last(work: Workspace) -> int | None:
    """The ZeRO stage of the last whole checkpoint, the only one that can go on from it; None without any."""
    whole = _named(storage.get(work.uri + _LATEST) or b"")
    state = _state(work, whole[-1]) if whole else None
    return state.layout.get("zero_stage") if state else None


def found(scratch: Path) -> dict[str, Any] | None:
    """What `download` left: tag, step, loss curve; whether it is `usable`, and in DeepSpeed's `universal` form."""
    state = scratch / _STATE
    return json.loads(state.read_text()) if state.exists() else None


def _folder(tag: str) -> str:
    return f"checkpoint/{tag}/"


def _tags(work: Workspace) -> list[str]:
    return list(storage.folders(f"{work.uri}checkpoint/"))


def _delete(work: Workspace, tags: list[str]) -> None:
    """What makes others believe a checkpoint goes first."""
    for tag in tags:
        prefix = work.uri + _folder(tag)
        storage.delete(prefix + _STATE)
        storage.delete_all(prefix, list(storage.keys(prefix)))


def _is_whole(work: Workspace, tag: str) -> bool:
    """Whether all files that its state names are there."""
    state = _state(work, tag)
    return state is not None and set(state.files) <= set(storage.keys(work.uri + _folder(tag)))


def _named(latest: bytes) -> list[str]:
    """The whole checkpoints that `latest.json` names; none where it is not ours."""
    try:
        return _Latest.model_validate_json(latest).whole
    except ValidationError:
        return []


def _state(work: Workspace, tag: str) -> State | None:
    """None where a checkpoint has no state, or none of ours: then it is not whole."""
    data = storage.get(work.uri + _folder(tag) + _STATE)
    try:
        return None if data is None else State.model_validate_json(data)
    except ValidationError:
        return None


def _digest(work: Workspace, tag: str, name: str) -> str:
    uri = f"{work.uri}{_folder(tag)}{name}"
    there = storage.head(uri)
    return (there and there.sha256) or storage.digest(uri)


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
