"""Shared memory of finished launches is given back; that of running ones, and of others, stays."""

import mmap
import os
import time
from pathlib import Path

import pytest

from infra.processes import shared_memory


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shared_memory, "_FOLDER", tmp_path)
    return tmp_path


def _buffer(folder: Path, port: int, rank: int, age_s: float = 3600) -> Path:
    path = folder / f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_{port}_{rank}"
    path.write_bytes(bytes(4096))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_only_old_buffers_that_no_process_maps_are_removed(folder: Path) -> None:
    unused, used, young = _buffer(folder, 1111, 0), _buffer(folder, 2222, 0), _buffer(folder, 3333, 0, age_s=0)
    other = folder / "psm_of_another_program"
    other.touch()
    with used.open("r+b") as stream, mmap.mmap(stream.fileno(), 0):
        assert shared_memory.remove_unused_buffers() == 1
    assert not unused.exists()
    assert used.exists()
    assert young.exists()
    assert other.exists()


def test_a_launch_gives_back_its_own_buffers(folder: Path) -> None:
    own, others = [_buffer(folder, 2951, rank) for rank in (0, 1)], _buffer(folder, 29510, 0)
    shared_memory.remove_buffers_of(2951)
    assert not any(path.exists() for path in own)
    assert others.exists()
