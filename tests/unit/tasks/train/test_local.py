"""The ranks of one machine: each knows its place, and the first that fails ends the rest."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.errors import ConfigurationError
from tasks.train.launch import local

WRITES = (
    "import os, sys; open(sys.argv[1] + os.environ['RANK'], 'w').write(' '.join(os.environ[n] for n in sys.argv[2:]))"
)
SECOND_FAILS = "import os, sys, time; time.sleep(0 if os.environ['RANK'] == '1' else 60); {how}"


def test_every_rank_knows_its_place(tmp_path: Path) -> None:
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    assert local.main(3, 29_501, [sys.executable, "-c", WRITES, f"{tmp_path}/", *names]) == 0
    told = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert told == {str(rank): f"{rank} {rank} 3 3 127.0.0.1 29501" for rank in range(3)}


@pytest.mark.parametrize(("how", "code"), [("sys.exit(78)", 78), ("os.kill(os.getpid(), 9)", 137)])
def test_the_first_that_fails_is_not_waited_out(how: str, code: int) -> None:
    began = time.monotonic()
    command = [sys.executable, "-c", SECOND_FAILS.format(how=how)]
    program = f"import sys; from tasks.train.launch.local import main; sys.exit(main(2, 1, {command!r}))"
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        assert process.wait(30) == code
        assert time.monotonic() - began < 30
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)  # as the guardian does


@pytest.mark.parametrize(("visible", "ranks"), [("", 2), ("3", 1), ("3,GPU-ab,5", 2)])
def test_visible_gpus_are_left_as_they_are(visible: str, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local.command(ranks, 5, "m")[1:] == ["-m", "tasks.train.launch.local", str(ranks), "5", "m"]
    assert "CUDA_VISIBLE_DEVICES" not in local.place(0, ranks, 5)


def test_more_ranks_than_visible_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(ConfigurationError, match="2 ranks, and CUDA_VISIBLE_DEVICES names 1 GPUs"):
        local.command(2, 5, "m")
