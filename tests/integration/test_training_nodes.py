"""Training over two nodes that share no folder, on this machine: the same curve, whole checkpoints, one resume."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infra.errors import OutOfMemoryError
from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace
from tasks.models import resolve
from tasks.train import stage
from tasks.train.settings import Training, TrainingRun
from tests.support.stages import training_workspace
from tests.support.training_process import TrainingProcess
from tests.support.wait import wait_for

TRAINING = Training(learning_rate=2e-3, max_steps=30, global_batch=16, max_length=256)
RUN = TrainingRun(processes=2, micro_batch=8, zero_stage=2, checkpoint_every_s=1e-3, stall_timeout_s=300)
HOSTS = ("127.0.0.1", "127.0.0.2")

# pdsh and Open MPI as far as DeepSpeed knows them: each "host" is a process with an environment of its own.
LAUNCHER = """#!{python}
import os, subprocess, sys
homes, hosts = {homes!r}, {hosts!r}
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
if name not in ("pdsh", "mpirun") or any(word.startswith("pkill") for word in words):
    sys.exit(0)
own = {{key: os.environ[key] for key in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "PATH", "HOME")}}
running = []
for number, host in enumerate(hosts):
    env = own | {{"DISTILFLOW_HOME": os.path.join(homes, host)}}
    if name == "pdsh":
        assert words[words.index("-w") + 1].split(",") == hosts
        command = ["sh", "-c", " ".join(words[words.index("-w") + 2 :]).replace("%n", str(number))]
    else:
        command = words[words.index({python!r}) :]
        env["PYTHONPATH"] = os.environ["PYTHONPATH"]
        env |= {{"OMPI_COMM_WORLD_RANK": str(number), "OMPI_COMM_WORLD_LOCAL_RANK": "0"}}
        env |= {{"OMPI_COMM_WORLD_SIZE": str(len(hosts)), "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}}
    running.append(subprocess.Popen(command, env=env))
sys.exit(max(abs(process.wait()) for process in running))
"""


@pytest.fixture(scope="module")
def one_node(rows: ArtifactRef) -> ArtifactRef:
    return stage.train(_work(rows, 2000), "sft", resolve("demo", "student"), rows, TRAINING, RUN, 0, lambda event: None)


@pytest.fixture
def two_nodes(tmp_path: Path) -> TrainingRun:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{host} slots=1\n" for host in HOSTS))
    return RUN.model_copy(update={"hostfile": str(hostfile), "launcher": "each_node"})


def _work(rows: ArtifactRef, version: int) -> Workspace:
    made = training_workspace("sft", resolve("demo", "student"), rows, TRAINING, 0)
    return Workspace(made.kind, version, made.spec, made.inputs)


def _whole(work: Workspace) -> list[str]:
    """The checkpoints in storage, the last one last."""
    return list(work.get_json("checkpoint/latest.json")["whole"]) if work.has("checkpoint/latest.json") else []


def _node(
    number: int, home: Path, rows: ArtifactRef, training: Training, run: TrainingRun, version: int, **env: str
) -> TrainingProcess:
    """A machine of its own, as far as processes and folders go."""
    env |= {"NODE_RANK": str(number), "DISTILFLOW_HOME": str(home / f"node{number}")}
    return TrainingProcess(rows, training, run, version, env)


def _assert_same(first: ArtifactRef, second: ArtifactRef) -> None:
    """Loss curves and weights."""
    curves = [ArtifactReader(ref).read_json("curve.json") for ref in (first, second)]
    assert [step for step, _ in curves[0]] == [step for step, _ in curves[1]] == [10, 20, 30]
    assert [loss for _, loss in curves[0]] == pytest.approx([loss for _, loss in curves[1]], abs=1e-4)
    ours, theirs = (load_file(ArtifactReader(ref).folder("model/") / "model.safetensors") for ref in (first, second))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=5e-3, rtol=0.02, msg=name)


def test_two_nodes_train_as_one_and_go_on_when_one_was_killed(
    rows: ArtifactRef, one_node: ArtifactRef, two_nodes: TrainingRun, tmp_path: Path
) -> None:
    work = _work(rows, 2001)
    nodes = [_node(number, tmp_path, rows, TRAINING, two_nodes, 2001) for number in (0, 1)]
    wait_for(lambda: _whole(work), 180, alive=[node.process for node in nodes])
    os.kill(nodes[1].process.pid, signal.SIGKILL)
    assert [node.ends() for node in nodes] == [75, -signal.SIGKILL]
    parts = {name for name in storage.keys(work.uri + "checkpoint/") if "zero_pp_rank" in name}
    [whole] = _whole(work)[-1:]
    assert {name.split("zero_pp_rank_")[1][0] for name in parts if name.startswith(whole)} == {"0", "1"}
    assert work.find() is None

    nodes = [_node(number, tmp_path, rows, TRAINING, two_nodes, 2001) for number in (1, 0)]
    assert [node.ends() for node in nodes] == [0, 0], [node.events[-1:] for node in nodes]
    assert next(event["step"] for event in nodes[1].events if event["event"] == "resumed") in (10, 20)
    assert not any(event["event"] == "resumed" for event in nodes[0].events)
    finished = work.find()
    assert finished is not None
    _assert_same(finished, one_node)


@pytest.mark.parametrize("launcher", ["pdsh", "openmpi"])
def test_a_launcher_of_deepspeed_starts_the_nodes_of_a_hostfile(
    rows: ArtifactRef,
    one_node: ArtifactRef,
    two_nodes: TrainingRun,
    launcher: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("pdsh", "mpirun", "ompi_info"):
        (programs / name).write_text(LAUNCHER.format(python=sys.executable, homes=str(tmp_path), hosts=list(HOSTS)))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    run = two_nodes.model_copy(update={"launcher": launcher})
    work = _work(rows, 2010 + len(launcher))
    made = stage.train(work, "sft", resolve("demo", "student"), rows, TRAINING, run, 0, lambda event: None)
    _assert_same(made, one_node)
    assert list((tmp_path / HOSTS[1] / "work" / "nodes").glob("*/node-*/spec.json"))  # which was brought there
    assert not (tmp_path / HOSTS[0] / "work" / "nodes").exists()


def test_what_is_wrong_on_another_node_is_said_by_the_first(
    rows: ArtifactRef, two_nodes: TrainingRun, tmp_path: Path
) -> None:
    """The second one has 4 MiB of memory, and refuses before any weight is loaded."""
    (tmp_path / "sitecustomize.py").write_text(
        "import types, psutil\npsutil.virtual_memory = lambda: types.SimpleNamespace(total=2**22)\n"
    )
    nodes = [
        _node(number, tmp_path, rows, TRAINING, two_nodes, 2002, **({"PYTHONPATH": str(tmp_path)} if number else {}))
        for number in (0, 1)
    ]
    assert [node.ends() for node in nodes] == [OutOfMemoryError.exit_code] * 2
    assert "this training does not fit into 0.0 GiB a device: ZeRO-2 on 2 devices" in nodes[0].events[-1]["why"]
    assert socket.gethostname() in nodes[0].events[-1]["why"]
