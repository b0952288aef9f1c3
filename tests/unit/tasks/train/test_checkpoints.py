"""Checkpoints on their way to storage: the last good ones stay, whatever becomes of the next."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.errors import TransientError
from tasks.train import checkpoints
from tasks.train.checkpoints import Uploads
from tasks.train.ranks import Rank

LAYOUT = {"ranks": 1, "zero_stage": 2}
ALONE = Rank(0, 1, 1)


class Engine:
    """Writes a file where DeepSpeed would write its folder."""

    def save_checkpoint(self, folder: str, tag: str) -> None:
        (Path(folder) / tag).mkdir(parents=True)
        (Path(folder) / tag / "state.pt").write_text(tag)


class Work:
    """A workspace in a dictionary, which can be away or full."""

    uri = "s3://bucket/sft/x/"

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.error: Exception | None = None

    def put_folder(self, prefix: str, folder: Path) -> None:
        if self.error:
            raise self.error
        for path in folder.iterdir():
            self.objects[prefix + path.name] = path.read_text()

    def put_json(self, name: str, value: Any) -> None:
        self.objects[name] = value

    def has(self, name: str) -> bool:
        return name in self.objects

    def get_json(self, name: str) -> Any:
        return dict(self.objects[name])


class Reporter:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    made = Work()
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    prefix = made.uri

    def keys(uri: str) -> list[str]:
        start = uri.removeprefix(prefix)
        return [name.removeprefix(start) for name in made.objects if name.startswith(start)]

    monkeypatch.setattr(checkpoints.storage, "keys", keys)
    monkeypatch.setattr(checkpoints.storage, "delete", lambda uri: made.objects.pop(uri.removeprefix(prefix)))
    return made


def _uploads(work: Work, kept: int = 1, reporter: Reporter | None = None, rank: Rank = ALONE, **more: Any) -> Uploads:
    told = {"launch": "a", "whole": [], **more}
    return Uploads(work, kept, reporter or Reporter(), rank, **told)  # type: ignore[arg-type]


def _steps(work: Work) -> set[str]:
    return {name.split("/")[1] for name in work.objects if "step-" in name}


def _saved(work: Work, folder: Path, steps: list[int], kept: int, reporter: Reporter | None = None) -> set[str]:
    """Steps whose checkpoints are in storage afterwards."""
    with _uploads(work, kept, reporter) as uploads:
        for step in steps:
            uploads.save(Engine(), folder, step, [[step, 1.0]], LAYOUT)
    return _steps(work)


@pytest.mark.parametrize("kept", [1, 2])
def test_the_last_ones_stay(work: Work, tmp_path: Path, kept: int) -> None:
    assert _saved(work, tmp_path, [5, 10, 15], kept) == {f"step-{step}-a" for step in [5, 10, 15][-kept:]}
    assert work.objects["checkpoint/latest.json"]["tag"] == "step-15-a"
    assert list(tmp_path.iterdir()) == []


def test_storage_that_is_away_costs_a_checkpoint_and_not_the_run(work: Work, tmp_path: Path) -> None:
    reporter = Reporter()
    with _uploads(work, 1, reporter) as uploads:
        uploads.save(Engine(), tmp_path, 5, [[5, 1.0]], LAYOUT)
        uploads._finish()
        work.error = TransientError("S3 does not answer")
        uploads.save(Engine(), tmp_path, 10, [[10, 1.0]], LAYOUT)
        uploads._finish()
        assert reporter.events == [("checkpoint_lost", {"why": "S3 does not answer"})]
        assert work.objects["checkpoint/latest.json"]["tag"] == "step-5-a"
        assert work.objects["checkpoint/step-5-a/state.pt"] == "step-5-a"
        work.error = None
        uploads.save(Engine(), tmp_path, 15, [[15, 1.0]], LAYOUT)
    assert work.objects["checkpoint/latest.json"]["tag"] == "step-15-a"


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_one(work: Work, tmp_path: Path) -> None:
    uploads = _uploads(work)
    uploads.save(Engine(), tmp_path, 5, [[5, 1.0]], LAYOUT)
    uploads._finish()
    work.error = OSError(errno.ENOSPC, "No space left on device")
    uploads.save(Engine(), tmp_path, 10, [[10, 1.0]], LAYOUT)
    with pytest.raises(OSError, match="No space left"):
        uploads.save(Engine(), tmp_path, 15, [[15, 1.0]], LAYOUT)
    assert work.objects["checkpoint/latest.json"]["tag"] == "step-5-a"


def test_a_checkpoint_holds_the_curve_as_it_was(work: Work, tmp_path: Path) -> None:
    curve = [[5, 1.0]]
    with _uploads(work) as uploads:
        uploads.save(Engine(), tmp_path, 5, curve, LAYOUT)
        curve.append([10, 0.5])
    assert work.objects["checkpoint/latest.json"]["curve"] == [[5, 1.0]]


def _download(
    work: Work, folder: Path, layout: dict[str, int], monkeypatch: pytest.MonkeyPatch, rank: Rank = ALONE
) -> list[str]:
    """Names of the objects that were brought."""
    brought: list[str] = []
    monkeypatch.setattr(checkpoints.storage, "download", lambda uri, path: brought.append(uri))
    checkpoints.download(work, folder, layout, rank)  # type: ignore[arg-type]
    return brought


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _download(work, tmp_path, LAYOUT, monkeypatch) == []
    assert checkpoints.found(tmp_path) is None


def test_the_last_checkpoint_is_brought_as_it_is(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _saved(work, tmp_path, [5, 10], 2)
    assert _download(work, tmp_path, LAYOUT, monkeypatch) == ["s3://bucket/sft/x/checkpoint/step-10-a/state.pt"]
    state = checkpoints.found(tmp_path)
    assert state is not None
    assert (state["tag"], state["step"], state["curve"]) == ("step-10-a", 10, [[10, 1.0]])
    assert state["usable"]
    assert not state["universal"]


def test_of_another_stages_checkpoint_only_its_steps_are_known(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _saved(work, tmp_path, [10], 1)
    assert _download(work, tmp_path, {"ranks": 1, "zero_stage": 3}, monkeypatch) == []
    state = checkpoints.found(tmp_path)
    assert state is not None
    assert (state["step"], state["usable"]) == (10, False)


def test_what_a_killed_launch_left_is_neither_kept_nor_mixed_with_what_the_next_one_saves(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed upload may be of a later step than all that follow, and of the very step that is saved again."""
    _saved(work, tmp_path, [10], 1)
    work.objects["checkpoint/step-20-a/zero_pp_rank_3_mp_rank_00_optim_states.pt"] = "half"
    with _uploads(work, launch="b", whole=["step-10-a"]) as uploads:
        uploads.save(Engine(), tmp_path, 15, [[15, 1.0]], LAYOUT)
    assert _steps(work) == {"step-15-b"}
    work.objects["checkpoint/step-20-b/zero_pp_rank_3_mp_rank_00_optim_states.pt"] = "half"
    with _uploads(work, kept=2, launch="c", whole=["step-15-b"]) as uploads:
        uploads.save(Engine(), tmp_path, 20, [[20, 1.0]], LAYOUT)
    assert _steps(work) == {"step-15-b", "step-20-c"}
    assert _download(work, tmp_path, LAYOUT, monkeypatch) == ["s3://bucket/sft/x/checkpoint/step-20-c/state.pt"]
    state = checkpoints.found(tmp_path)
    assert state is not None
    assert state["whole"] == ["step-15-b", "step-20-c"]


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
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [_uploads(work, rank=Rank(number, 2, 1)) for number in (0, 1)]
    nodes[0].save(PartEngine(0), tmp_path / "0", 5, [[5, 1.0]], TWO)
    time.sleep(1)  # the first node's part has long arrived
    assert len(work.objects) == 2
    assert "checkpoint/latest.json" not in work.objects
    nodes[1].save(PartEngine(1), tmp_path / "1", 5, [[5, 1.0]], TWO)
    for uploads in (nodes[1], nodes[0]):
        uploads.__exit__(None)
    assert len(_steps(work)) == 1
    assert work.objects["checkpoint/latest.json"]["tag"] == "step-5-a"
    mine = _download(work, tmp_path / "1", TWO, monkeypatch, Rank(1, 2, 1))
    assert {uri.rpartition("/")[2] for uri in mine} == {
        "mp_rank_00_model_states.pt",
        "zero_pp_rank_1_mp_rank_00_optim_states.pt",
    }
    assert len(_download(work, tmp_path / "0", TWO, monkeypatch, Rank(0, 2, 2))) == 3


@pytest.mark.usefixtures("store")
def test_a_part_that_is_lost_loses_the_checkpoint_on_the_first_node_too(work: Work, tmp_path: Path) -> None:
    reporter, other = Reporter(), Work()
    other.objects = work.objects  # the same storage, seen from another node
    nodes = [_uploads(work, 1, reporter, Rank(0, 2, 1)), _uploads(other, rank=Rank(1, 2, 1))]
    for step in (5, 10):
        other.error = TransientError("S3 does not answer") if step == 10 else None
        for number, uploads in enumerate(nodes):
            uploads.save(PartEngine(number), tmp_path / str(number), step, [[step, 1.0]], TWO)
        nodes[1]._finish()
    nodes[0]._finish()
    assert reporter.events == [("checkpoint_lost", {"why": "the part of node 1 did not arrive"})]
    assert work.objects["checkpoint/latest.json"]["tag"] == "step-5-a"
    assert len([name for name in work.objects if "step-5-a" in name]) == 3


@pytest.mark.usefixtures("store")
def test_a_run_that_fails_does_not_wait_for_parts_that_never_come(work: Work, tmp_path: Path) -> None:
    uploads = _uploads(work, rank=Rank(0, 2, 1))
    uploads.save(PartEngine(0), tmp_path, 5, [[5, 1.0]], TWO)
    uploads.__exit__(RuntimeError)
    uploads._pool.shutdown(wait=True)
    assert "checkpoint/latest.json" not in work.objects
