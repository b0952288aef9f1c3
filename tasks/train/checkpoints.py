"""DeepSpeed checkpoints in the artifact's workspace: whole or not there, the last good one kept.

Objects under `checkpoint/step-N/`, then `checkpoint/latest.json`, which is what a resumed run believes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from infra import storage
from infra.artifacts import Workspace

_LATEST = "checkpoint/latest.json"


def save(
    engine: Any, work: Workspace, scratch: Path, step: int, curve: list[list[float]], layout: dict[str, int]
) -> None:
    """Write a checkpoint from all ranks and, once it is whole in storage, forget the one before."""
    tag = f"step-{step}"
    engine.save_checkpoint(str(scratch), tag=tag)
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        work.put_folder(f"checkpoint/{tag}/", scratch / tag)
        work.put_json(_LATEST, {"tag": tag, "step": step, "curve": curve, "layout": layout})
        shutil.rmtree(scratch / tag)
        for name in list(storage.keys(work.uri + "checkpoint/")):
            if name.startswith("step-") and not name.startswith(f"{tag}/"):
                storage.delete(work.uri + "checkpoint/" + name)
    torch.distributed.barrier()


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
