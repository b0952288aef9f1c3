"""Checkpoints on their way to storage: the last good ones stay, whatever becomes of the next."""

from __future__ import annotations

import errno
import os
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum

from infra.errors import TransientError
from infra.store.artifacts import Workspace
from infra.store.claims import LeaseLost
from tasks.train import checkpoints
from tasks.train.checkpoints import Uploads
from tasks.train.launch.ranks import Rank
from tests.support.memory_store import MemoryStore

LAYOUT = {"ranks": 1, "zero_stage": 2}
ALONE = Rank(0, 1, 1)


class Engine:
    """Writes a file where DeepSpeed would write its folder."""

    def save_checkpoint(self, folder: str, tag: str) -> None:
        (Path(folder) / tag).mkdir(parents=True)
        (Path(folder) / tag / "state.pt").write_text(tag)


class Reporter:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    return MemoryStore().replace(monkeypatch)


@pytest.fixture
def work() -> Workspace:
    return Workspace("sft", 1, {}, {})


def _uploads(
    work: Workspace, kept: int = 1, reporter: Reporter | None = None, rank: Rank = ALONE, launch: str = "a"
) -> Uploads:
    owned = checkpoints.take_over(work, launch) if rank.is_first else None
    return Uploads(work, kept, reporter or Reporter(), rank, launch, owned)  # type: ignore[arg-type]


def _steps(bucket: MemoryStore) -> set[str]:
    return {name.split("/checkpoint/")[1].split("/")[0] for name in bucket.names() if "/step-" in name}


def _whole(work: Workspace) -> list[str]:
    whole: list[str] = work.get_json("checkpoint/latest.json")["whole"]
    return whole


def _saved(work: Workspace, folder: Path, steps: list[int], kept: int, launch: str = "a") -> None:
    with _uploads(work, kept, launch=launch) as uploads:
        for step in steps:
            uploads.save(Engine(), folder, step, [[step, 1.0]], LAYOUT)


@pytest.mark.parametrize("kept", [1, 2])
def test_the_last_ones_stay(bucket: MemoryStore, work: Workspace, tmp_path: Path, kept: int) -> None:
    _saved(work, tmp_path, [5, 10, 15], kept)
    assert _steps(bucket) == {f"step-{step}-a" for step in [5, 10, 15][-kept:]}
    assert _whole(work)[-1] == "step-15-a"
    assert list(tmp_path.iterdir()) == []


def test_storage_that_is_away_costs_a_checkpoint_and_not_the_run(
    bucket: MemoryStore, work: Workspace, tmp_path: Path
) -> None:
    reporter = Reporter()
    with _uploads(work, 1, reporter) as uploads:
        uploads.save(Engine(), tmp_path, 5, [[5, 1.0]], LAYOUT)
        uploads._finish()
        bucket.error = TransientError("S3 does not answer")
        uploads.save(Engine(), tmp_path, 10, [[10, 1.0]], LAYOUT)
        uploads._finish()
        assert reporter.events == [("checkpoint_lost", {"why": "S3 does not answer"})]
        assert _whole(work) == ["step-5-a"]
        assert work.read("checkpoint/step-5-a/state.pt") == b"step-5-a"
        bucket.error = None
        uploads.save(Engine(), tmp_path, 15, [[15, 1.0]], LAYOUT)
    assert _whole(work) == ["step-15-a"]


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_one(
    bucket: MemoryStore, work: Workspace, tmp_path: Path
) -> None:
    uploads = _uploads(work)
    uploads.save(Engine(), tmp_path, 5, [[5, 1.0]], LAYOUT)
    uploads._finish()
    bucket.error = OSError(errno.ENOSPC, "No space left on device")
    uploads.save(Engine(), tmp_path, 10, [[10, 1.0]], LAYOUT)
    with pytest.raises(OSError, match="No space left"):
        uploads.save(Engine(), tmp_path, 15, [[15, 1.0]], LAYOUT)
    assert _whole(work) == ["step-5-a"]


@pytest.mark.usefixtures("bucket")
def test_a_checkpoint_holds_the_curve_as_it_was(work: Workspace, tmp_path: Path) -> None:
    curve = [[5, 1.0]]
    with _uploads(work) as uploads:
        uploads.save(Engine(), tmp_path, 5, curve, LAYOUT)
        curve.append([10, 0.5])
    assert work.get_json("checkpoint/step-5-a/state.json")["curve"] == [[5, 1.0]]


def _brought(work: Workspace, folder: Path, layout: dict[str, int] = LAYOUT, rank: Rank = ALONE) -> list[str]:
    """Names of the files that a new launch brings, by its own tag."""
    if rank.is_first:
        checkpoints.take_over(work, "new")
    checkpoints.download(work, folder, layout, rank)
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*"))


@pytest.mark.usefixtures("bucket")
def test_without_a_checkpoint_there_is_nothing_to_go_on_from(work: Workspace, tmp_path: Path) -> None:
    assert _brought(work, tmp_path) == []
    assert checkpoints.found(tmp_path) is None


@pytest.mark.usefixtures("bucket")
def test_the_last_checkpoint_is_brought_as_it_is(work: Workspace, tmp_path: Path) -> None:
    _saved(work, tmp_path, [5, 10], 2)
    assert _brought(work, tmp_path) == ["step-10-a/state.pt"]
    state = checkpoints.found(tmp_path)
    assert state is not None
    assert (state["tag"], state["step"], state["curve"]) == ("step-10-a", 10, [[10, 1.0]])
    assert state["usable"]
    assert not state["universal"]


@pytest.mark.usefixtures("bucket")
def test_of_another_stages_checkpoint_only_its_steps_are_known(work: Workspace, tmp_path: Path) -> None:
    _saved(work, tmp_path, [10], 1)
    assert _brought(work, tmp_path, {"ranks": 1, "zero_stage": 3}) == []
    state = checkpoints.found(tmp_path)
    assert state is not None
    assert (state["step"], state["usable"]) == (10, False)


@pytest.mark.usefixtures("bucket")
def test_the_stage_of_the_last_checkpoint_is_known_before_anything_is_brought(work: Workspace, tmp_path: Path) -> None:
    assert checkpoints.stage_of_last(work) is None
    _saved(work, tmp_path, [5], 1)
    assert checkpoints.stage_of_last(work) == LAYOUT["zero_stage"]


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(("before", "usable"), [({}, True), ({"weight_bytes": 2}, False), ({"weight_bytes": 4}, True)])
def test_a_checkpoint_of_another_precision_starts_anew_and_one_that_names_none_goes_on(
    work: Workspace, tmp_path: Path, before: dict[str, int], usable: bool
) -> None:
    with _uploads(work) as uploads:
        uploads.save(Engine(), tmp_path, 5, [], LAYOUT | before)
    assert bool(_brought(work, tmp_path, LAYOUT | {"weight_bytes": 4})) == usable
    state = checkpoints.found(tmp_path)
    assert state is not None
    assert (state["usable"], state["universal"]) == (usable, False)


def test_what_a_killed_launch_left_is_neither_kept_nor_mixed_with_what_the_next_one_saves(
    bucket: MemoryStore, work: Workspace, tmp_path: Path
) -> None:
    """A killed upload may be of a later step than all that follow, and of the very step that is saved again."""
    _saved(work, tmp_path, [10], 1)
    work.put("checkpoint/step-20-a/zero_pp_rank_3_mp_rank_00_optim_states.pt", b"half")
    _saved(work, tmp_path, [15], 1, launch="b")
    assert _steps(bucket) == {"step-15-b"}
    work.put("checkpoint/step-20-b/zero_pp_rank_3_mp_rank_00_optim_states.pt", b"half")
    _saved(work, tmp_path, [20], 2, launch="c")
    assert _steps(bucket) == {"step-15-b", "step-20-c"}
    assert _brought(work, tmp_path) == ["step-20-c/state.pt"]
    assert _whole(work) == ["step-15-b", "step-20-c"]


def test_of_two_that_train_one_artifact_the_older_stops_and_harms_nothing(
    bucket: MemoryStore, work: Workspace, tmp_path: Path
) -> None:
    """It was paused, and taken for dead."""
    older = _uploads(work, launch="a")
    older.save(Engine(), tmp_path / "a", 5, [[5, 1.0]], LAYOUT)
    older._finish()
    with _uploads(work, launch="b") as newer:
        newer.save(Engine(), tmp_path / "b", 10, [[10, 1.0]], LAYOUT)
        newer._finish()
        older.save(Engine(), tmp_path / "a", 30, [[30, 1.0]], LAYOUT)
        with pytest.raises(LeaseLost, match="another run has taken over the training at s3://"):
            older._finish()
        assert _whole(work) == ["step-10-b"]
        assert _steps(bucket) == {"step-10-b"}
        newer.save(Engine(), tmp_path / "b", 15, [[15, 1.0]], LAYOUT)
    assert _brought(work, tmp_path / "c") == ["step-15-b/state.pt"]


def test_from_a_checkpoint_of_which_a_file_is_gone_it_steps_back(
    bucket: MemoryStore, work: Workspace, tmp_path: Path
) -> None:
    _saved(work, tmp_path, [5, 10], 2)
    bucket.delete(f"{work.uri}checkpoint/step-10-a/state.pt")
    assert _brought(work, tmp_path) == ["step-5-a/state.pt"]
    assert _steps(bucket) == {"step-5-a"}


@pytest.mark.usefixtures("bucket")
def test_a_damaged_checkpoint_is_given_up_for_the_one_before_it(work: Workspace, tmp_path: Path) -> None:
    _saved(work, tmp_path, [5, 10], 2)
    work.put("checkpoint/step-10-a/state.pt", b"step-10-b")
    with pytest.raises(TransientError, match=r"step-10-a in s3://.* is damaged \(state.pt\)"):
        _brought(work, tmp_path / "1")
    assert _brought(work, tmp_path / "2") == ["step-5-a/state.pt"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("checkpoint/latest.json", {"whole": ["../../x"], "launch": "a"}),
        ("checkpoint/latest.json", ["no", "object"]),
        ("checkpoint/step-10-a/state.json", {"step": 10, "curve": [], "layout": LAYOUT, "files": {"../x": "0"}}),
        ("checkpoint/step-10-a/state.json", {"step": 10, "curve": [], "layout": LAYOUT, "files": {"/etc/x": "0"}}),
        ("checkpoint/step-10-a/state.json", {"step": "ten"}),
    ],
)
@pytest.mark.usefixtures("bucket")
def test_what_others_wrote_in_place_of_a_checkpoint_is_none(
    work: Workspace, tmp_path: Path, name: str, value: Any
) -> None:
    _saved(work, tmp_path, [10], 1)
    work.put_json(name, value)
    assert _brought(work, tmp_path) == []
    assert checkpoints.found(tmp_path) is None


class Poison:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("import pathlib; pathlib.Path(POISONED).touch()".replace("POISONED", repr(POISONED)),))


POISONED = str(Path(tempfile.gettempdir()) / f"poisoned-{os.getpid()}")


def test_nothing_is_run_by_loading_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    torch.save({"module": Poison()}, tmp_path / "x.pt")
    torch.save({"stage": ZeroStageEnum.gradients, "scaler": LossScaler(1.0), "w": torch.ones(2)}, tmp_path / "y.pt")
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")  # undone after the test
    checkpoints.load_data_only()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pt", weights_only=False)  # as DeepSpeed does
    assert not Path(POISONED).exists()
    assert torch.load(tmp_path / "y.pt", weights_only=False)["stage"] == ZeroStageEnum.gradients


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> torch.distributed.Store:
    """Where the nodes of a run meet."""
    made = torch.distributed.HashStore()
    monkeypatch.setattr(checkpoints, "_store", lambda: made)
    return made


class PartEngine(Engine):
    """Writes what one rank of ZeRO-2 writes."""

    def __init__(self, rank: int):
        self.rank = rank

    def save_checkpoint(self, folder: str, tag: str) -> None:
        (Path(folder) / tag).mkdir(parents=True)
        (Path(folder) / tag / f"zero_pp_rank_{self.rank}_mp_rank_00_optim_states.pt").write_text(tag)
        if self.rank == 0:
            (Path(folder) / tag / "mp_rank_00_model_states.pt").write_text(tag)


TWO = {"ranks": 2, "zero_stage": 2}


@pytest.mark.usefixtures("store")
def test_a_checkpoint_counts_when_the_parts_of_all_nodes_have_arrived(
    bucket: MemoryStore, work: Workspace, tmp_path: Path
) -> None:
    nodes = [_uploads(work, rank=Rank(number, 2, 1)) for number in (0, 1)]
    nodes[0].save(PartEngine(0), tmp_path / "0", 5, [[5, 1.0]], TWO)
    time.sleep(1)  # the first node's part has long arrived
    assert len(bucket.objects) == 3
    assert _whole(work) == []
    nodes[1].save(PartEngine(1), tmp_path / "1", 5, [[5, 1.0]], TWO)
    for uploads in (nodes[1], nodes[0]):
        uploads.__exit__(None)
    assert _whole(work) == ["step-5-a"]
    assert len(_brought(work, tmp_path / "00", TWO, Rank(0, 2, 2))) == 3
    assert _brought(work, tmp_path / "11", TWO, Rank(1, 2, 1)) == [
        "step-5-a/mp_rank_00_model_states.pt",
        "step-5-a/zero_pp_rank_1_mp_rank_00_optim_states.pt",
    ]


@pytest.mark.usefixtures("store")
def test_a_part_that_is_lost_loses_the_checkpoint_on_the_first_node_too(
    bucket: MemoryStore, work: Workspace, tmp_path: Path
) -> None:
    reporter = Reporter()
    nodes = [_uploads(work, 1, reporter, Rank(0, 2, 1)), _uploads(work, rank=Rank(1, 2, 1))]
    for step in (5, 10):
        for number, uploads in enumerate(nodes):
            bucket.error = TransientError("S3 does not answer") if (step, number) == (10, 1) else None
            uploads.save(PartEngine(number), tmp_path / str(number), step, [[step, 1.0]], TWO)
            while number == 0 and len(list(bucket.keys(f"{work.uri}checkpoint/step-{step}-a/"))) < 2:
                time.sleep(0.01)  # the first node's part is there before storage goes away
        nodes[1]._finish()
    nodes[0]._finish()
    assert reporter.events == [("checkpoint_lost", {"why": "the part of node 1 did not arrive"})]
    assert _whole(work) == ["step-5-a"]
    assert len(list(bucket.keys(f"{work.uri}checkpoint/step-5-a/"))) == 4


@pytest.mark.usefixtures("store", "bucket")
def test_a_run_that_fails_does_not_wait_for_parts_that_never_come(work: Workspace, tmp_path: Path) -> None:
    uploads = _uploads(work, rank=Rank(0, 2, 1))
    uploads.save(PartEngine(0), tmp_path, 5, [[5, 1.0]], TWO)
    uploads.__exit__(RuntimeError)
    uploads._pool.shutdown(wait=True)
    assert _whole(work) == []
