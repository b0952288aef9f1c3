"""Hostfiles, and the commands that start their nodes, as DeepSpeed's own runner understands them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deepspeed.launcher import multinode_runner, runner

from infra.errors import ConfigurationError, OutOfMemoryError, TransientError
from tasks.train.launch import node, nodes
from tasks.train.launch.nodes import Hosts, Launch, command, read_hosts, this_node
from tasks.train.launch.ranks import Rank
from tasks.train.settings import TrainingRun

HOSTS = Hosts("/cluster/hostfile", ("gpu-0", "gpu-1"), 8)
LAUNCH = Launch("ab12", "gpu-0", 29_501, 16, 8)
WORK: Any = SimpleNamespace(uri="s3://bucket/sft/f00/")
FOLDER = "/scratch/sft-7-x"


def _run(launcher: str) -> TrainingRun:
    return TrainingRun(hostfile=HOSTS.path, launcher=launcher)  # type: ignore[arg-type]


def _read_by_deepspeed(run: TrainingRun, number: int = 0) -> Any:
    """The runner's arguments."""
    words = command(run, HOSTS, LAUNCH, number, "tasks.train.program", WORK)
    assert words[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    return runner.parse_args([*words[3:], FOLDER])


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*nodes._NODE_NUMBERS, *nodes._TOLD):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://store:8333")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")


@pytest.mark.parametrize("launcher", ["pdsh", "openmpi"])
def test_the_runner_starts_the_entry_on_every_node_with_the_launchs_address(launcher: str) -> None:
    found = _read_by_deepspeed(_run(launcher))
    assert (found.hostfile, found.launcher, found.module) == (HOSTS.path, launcher, True)
    assert (found.master_addr, found.master_port) == ("gpu-0", 29_501)
    assert found.user_script == "tasks.train.launch.node"
    assert found.user_args == [
        "s3://bucket/sft/f00/launch/ab12.json",
        "AWS_ENDPOINT_URL_S3=http://store:8333",
        FOLDER,
    ]
    pool = {"gpu-0": 8, "gpu-1": 8}
    active = {name: list(range(slots)) for name, slots in pool.items()}
    world = runner.encode_world_info(active)
    if launcher == "pdsh":
        built, kill, _ = multinode_runner.PDSHRunner(found, world).get_cmd({}, active)
        assert built[: built.index("-w") + 2] == ["pdsh", "-S", "-f", "1024", "-w", "gpu-0,gpu-1"]
        assert "--node_rank=%n" in built
    else:
        built, kill = multinode_runner.OpenMPIRunner(found, world, pool).get_cmd({}, active), []
        assert built[1:3] == ["-n", "16"]
        assert built[built.index("tasks.train.launch.node") - 1] == "-m"
    assert built[-1] == FOLDER
    assert "hunter2" not in " ".join([*built, *kill])


@pytest.mark.parametrize("name", ["NODE_RANK", "JOB_COMPLETION_INDEX", "SLURM_NODEID"])
def test_where_every_node_runs_the_command_each_starts_its_own_ranks_without_ssh(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    run = _run("each_node")
    found = _read_by_deepspeed(run, this_node(run, HOSTS))
    assert (found.no_ssh, found.node_rank, found.master_addr) == (True, 1, "gpu-0")
    assert (found.user_script, found.user_args) == ("tasks.train.program", [FOLDER])


def test_a_node_that_does_not_know_its_number_or_is_none_of_them_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="NODE_RANK, JOB_COMPLETION_INDEX, SLURM_NODEID"):
        this_node(_run("each_node"), HOSTS)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
    with pytest.raises(ConfigurationError, match="JOB_COMPLETION_INDEX is 2, and /cluster/hostfile names 2 nodes"):
        this_node(_run("each_node"), HOSTS)


def test_a_launcher_starts_from_the_first_host(tmp_path: Path) -> None:
    assert this_node(_run("pdsh"), Hosts("hostfile", ("127.0.0.1", "gpu-1"), 1)) == 0
    with pytest.raises(ConfigurationError, match=re.escape("192.0.2.1, has to be the machine")):
        this_node(_run("pdsh"), Hosts("hostfile", ("192.0.2.1", "127.0.0.1"), 1))


def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path: Path) -> None:
    text = "# the cluster\ngpu-0 slots=8\n\n  gpu-1   slots=8  \n"
    (tmp_path / "hostfile").write_text(text)
    found = read_hosts(str(tmp_path / "hostfile"))
    assert (found.names, found.slots, found.ranks) == (("gpu-0", "gpu-1"), 8, 16)
    assert dict.fromkeys(found.names, found.slots) == runner._parse_hostfile(text.splitlines())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu-0 slots=8\ngpu-0 slots=8\n", "line 2: 'gpu-0 slots=8'"),
        ("gpu-0\n", "line 1: 'gpu-0' is not"),
        ("gpu-0 slots=0\n", "line 1"),
        ("gpu-0 slots=8\ngpu-1 slots=4\n", "the same number of slots"),
        ("# nobody\n", "not none"),
    ],
)
def test_a_wrong_hostfile_is_told_by_its_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "hostfile").write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        read_hosts(str(tmp_path / "hostfile"))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_hosts(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("number", "node_", "leads", "mates"), [(0, 0, True, [0, 1, 2]), (4, 1, False, [3, 4, 5])])
def test_a_rank_knows_its_node(number: int, node_: int, leads: bool, mates: list[int]) -> None:
    rank = Rank(number, 9, 3)
    assert (rank.node, rank.nodes, rank.leads_node, list(rank.of_node)) == (node_, 3, leads, mates)
    assert rank.is_first == (number == 0)


@pytest.mark.parametrize(
    "told",
    [
        {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_SIZE": "8"},
        {"OMPI_COMM_WORLD_RANK": "9", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
    ],
)
def test_a_rank_finds_its_place_whoever_started_it(told: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(told))
    node.set_place(LAUNCH)
    wanted = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_SIZE": "8"}
    wanted |= {"MASTER_ADDR": "gpu-0", "MASTER_PORT": "29501"}
    assert {name: os.environ[name] for name in wanted} == wanted
    assert Rank.here() == Rank(9, 16, 8)


def test_a_rank_that_ssh_started_ends_with_the_process_that_supervises_it(tmp_path: Path) -> None:
    supervisor = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    folder = tmp_path / f"sft-{supervisor.pid}-x"
    folder.mkdir()
    code = f"import pathlib; from tasks.train.launch.node import _end_with; _end_with(pathlib.Path({str(folder)!r}))"
    rank = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[4])
    with pytest.raises(subprocess.TimeoutExpired):
        rank.wait(timeout=4)
    supervisor.kill()
    supervisor.wait()
    assert rank.wait(timeout=30) == 1


class Stored(dict[str, bytes]):
    """Storage in a dictionary."""

    def put(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> bool:
        if only_if_absent and uri in self:
            return False
        self[uri] = data
        return True


def test_the_first_node_learns_what_no_retry_can_help(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Stored()
    monkeypatch.setattr(nodes.storage, "put", stored.put)
    monkeypatch.setattr(nodes.storage, "get", stored.get)
    nodes.tell_error(WORK, "ab12", TransientError("connection closed by peer"))
    assert nodes.reported_error(WORK, "ab12") is None
    nodes.tell_error(WORK, "ab12", OutOfMemoryError("out of memory: buy more"))
    nodes.tell_error(WORK, "ab12", ConfigurationError("in its wake"))
    told = nodes.reported_error(WORK, "ab12")
    assert isinstance(told, OutOfMemoryError)
    assert str(told).endswith(": out of memory: buy more")
    assert nodes.reported_error(WORK, "another") is None


def test_a_node_takes_part_in_a_launch_once_and_only_while_the_first_node_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = Stored()
    monkeypatch.setattr(nodes.storage, "put", stored.put)
    work: Any = SimpleNamespace(uri=WORK.uri, has=lambda name: WORK.uri + name in stored)
    work.put_json = lambda name, value: stored.put(WORK.uri + name, json.dumps(value).encode())
    work.get_json = lambda name: json.loads(stored[WORK.uri + name])
    assert nodes.next_launch(work, 1) is None
    waits = False
    monkeypatch.setattr(Launch, "answers", lambda self: waits)
    nodes.announce(work, LAUNCH, {"seed": 0})
    assert nodes.next_launch(work, 1) is None
    waits = True
    assert nodes.next_launch(work, 1) == LAUNCH
    assert nodes.next_launch(work, 1) is None
    assert nodes.next_launch(work, 2) == LAUNCH
    again = Launch("cd34", "gpu-0", 29_502, 16, 8)
    nodes.announce(work, again, {"seed": 0})
    assert nodes.next_launch(work, 1) == again


def test_a_rank_keeps_its_pages_shares_the_cores_and_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(nodes.os, "cpu_count", lambda: 8)
    assert nodes.environment(2).items() >= nodes.KEPT_PAGES.items()
    assert nodes.environment(2)["OMP_NUM_THREADS"] == "4"
    assert nodes.environment(2)["TORCHDYNAMO_DISABLE"] == "1"


@pytest.mark.parametrize("name", ["MALLOC_MMAP_MAX_", "OMP_NUM_THREADS", "TORCHDYNAMO_DISABLE"])
def test_a_rank_takes_what_the_user_has_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than there are cores free wait for each other in a loop: twice the time, or ten times."""
    monkeypatch.setenv(name, "65536")
    assert nodes.environment(2)[name] == "65536"
