"""What a container may have counts where it is less than the machine: of either version of cgroups, at any level."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from infra import memory

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 GiB, 40 of them free, whose cgroups lie here."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=40 * GIB))
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OURS", tmp_path / "ours")
    return tmp_path


def _group(folder: Path, **files: int | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"memory.{name}").write_text(f"{content}\n")


def test_without_a_group_it_is_the_machine(root: Path) -> None:
    assert (memory.total(), memory.free()) == (64 * GIB, 40 * GIB)
    (root / "ours").write_text("0::/\n")
    assert (memory.total(), memory.free()) == (64 * GIB, 40 * GIB)


def test_the_least_of_all_levels_counts_less_what_the_kernel_gives_back(root: Path) -> None:
    (root / "ours").write_text("0::/kubepods/pod\n")
    _group(root / "kubepods/pod", max="max", current=GIB, stat="anon 5")
    _group(root / "kubepods", max=16 * GIB, current=10 * GIB, stat=f"anon {4 * GIB}\ninactive_file {3 * GIB}")
    assert (memory.total(), memory.free()) == (16 * GIB, 9 * GIB)
    _group(root / "kubepods/pod", max=8 * GIB)
    assert (memory.total(), memory.free()) == (8 * GIB, 7 * GIB)


def test_version_1_and_a_container_that_is_told_its_path_outside(root: Path) -> None:
    (root / "ours").write_text("5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n")
    stat = f"total_inactive_file {GIB}"
    _group(root / "memory", limit_in_bytes=4 * GIB, usage_in_bytes=2 * GIB, stat=stat)
    assert (memory.total(), memory.free()) == (4 * GIB, 3 * GIB)
    _group(root / "memory", limit_in_bytes=2**63 - 4096, usage_in_bytes=2 * GIB)  # as version 1 says that there is none
    assert (memory.total(), memory.free()) == (64 * GIB, 40 * GIB)
