"""Ranks wait for one another as long as the slowest has work to do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from infra import settings
from infra.services.server import free_ports
from tasks.train.launch.ranks import Rank
from tasks.train.program import join


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    [port] = free_ports(1)
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    # built by `make setup`: a process that is not told where builds it for a minute
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", settings.torch_extensions_dir())
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_a_rank_waits_for_a_download_of_hours(tmp_path: Path) -> None:
    """A checkpoint of 105 GB at 50 MB/s, or the spool of a million rows, takes longer than torch's 10 minutes."""
    join(Rank(0, 1, 1), tmp_path, on_gpu=False)
    group: Any = torch.distributed.group.WORLD
    assert group._get_backend(torch.device("cpu")).options._timeout >= timedelta(seconds=105e9 / 50e6)
