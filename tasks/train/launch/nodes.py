"""Training over several nodes: a hostfile names them, and DeepSpeed's runner or somebody else starts them.

With pdsh or openmpi the first node starts all others: `tasks.train.launch.node` runs there, and brings the spec from
the workspace, since nodes share no folder. With `each_node` the same command runs on every node (pods of a Kubernetes
indexed job, `srun`): the first announces its launch in the workspace, and the others take part in it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from infra import settings
from infra.errors import BY_EXIT_CODE, ConfigurationError, DistilflowError, is_retryable
from infra.store import storage
from infra.store.artifacts import Workspace
from tasks.train.settings import TrainingRun

ENTRY, PROGRAM = "tasks.train.launch.node", "tasks.train.program"
_NODE_NUMBERS = ("NODE_RANK", "JOB_COMPLETION_INDEX", "SLURM_NODEID")
_TOLD = (
    *("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("DISTILFLOW_BUCKET", "DISTILFLOW_HOME", "HF_HOME", "HF_HUB_OFFLINE"),
)


@dataclass(frozen=True)
class Hosts:
    """A hostfile: the nodes by name, the first one this machine, each with `slots` ranks."""

    path: str
    names: tuple[str, ...]
    slots: int

    @property
    def ranks(self) -> int:
        return len(self.names) * self.slots


@dataclass(frozen=True)
class Launch:
    """One start of the program on all nodes; its ranks meet at `port` of `address`."""

    id: str
    address: str
    port: int
    ranks: int
    on_node: int

    def __post_init__(self) -> None:
        numbers = (self.port, self.ranks, self.on_node)
        if not re.fullmatch(r"\w{1,32}", self.id) or not all(isinstance(n, int) and n > 0 for n in numbers):
            raise ConfigurationError(f"{self} is no launch of ours")

    @staticmethod
    def here(ranks: int) -> Launch:
        return Launch(uuid.uuid4().hex[:8], "127.0.0.1", _free_port(), ranks, ranks)

    @staticmethod
    def on(hosts: Hosts) -> Launch:
        return Launch(uuid.uuid4().hex[:8], hosts.names[0], _free_port(), hosts.ranks, hosts.slots)

    def answers(self) -> bool:
        """Whether the first rank waits for the others by now."""
        try:
            socket.create_connection((self.address, self.port), 2).close()
        except OSError:
            return False
        return True


# glibc returns a large tensor's pages when it is freed, and touching those of the next costs a CPU a tenth of a
# fused head, a third of a small step. So they stay in the heap (glibc manual, "Memory Allocation Tunables").
KEPT_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def environment(on_node: int) -> dict[str, str]:
    """Variables of a rank that shares its machine with so many; what the user sets stays.

    Nothing is compiled: as it starts, DeepSpeed would prepare to compile an optimizer that nobody asked for.
    """
    threads = max(1, (os.cpu_count() or 1) // on_node)
    chosen = {**KEPT_PAGES, "OMP_NUM_THREADS": str(threads), "TORCHDYNAMO_DISABLE": "1"}
    return {
        **{name: os.environ.get(name) or value for name, value in chosen.items()},
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_EXTENSIONS_DIR": settings.torch_extensions_dir(),
    }


def read_hosts(path: str) -> Hosts:
    """The nodes that a hostfile names; ConfigurationError where it names none, or not all alike."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise ConfigurationError(f"run.hostfile {path} cannot be read ({error.strerror})") from error
    slots: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = re.fullmatch(r"\s*(\S+)\s+slots=([1-9]\d*)\s*", line)
        if found is None or found[1] in slots:
            raise ConfigurationError(f"{path}, line {number}: {line.strip()!r} is not one more `HOST slots=NUMBER`")
        slots[found[1]] = int(found[2])
    if len(set(slots.values())) != 1:
        raise ConfigurationError(f"{path} has to name nodes with the same number of slots, not {slots or 'none'}")
    return Hosts(path, tuple(slots), next(iter(slots.values())))


def this_node(run: TrainingRun, hosts: Hosts) -> int:
    """Which node this machine is: the first, or what the scheduler says where each is started by itself."""
    if run.launcher != "each_node":
        if not _is_here(hosts.names[0]):
            raise ConfigurationError(
                f"the first host of {hosts.path}, {hosts.names[0]}, has to be the machine that training is started on"
            )
        return 0
    for name in _NODE_NUMBERS:
        if (value := os.environ.get(name, "")).isdigit():
            if int(value) < len(hosts.names):
                return int(value)
            raise ConfigurationError(f"{name} is {value}, and {hosts.path} names {len(hosts.names)} nodes")
    raise ConfigurationError(f"run.launcher=each_node needs the node's number in one of {', '.join(_NODE_NUMBERS)}")


def command(run: TrainingRun, hosts: Hosts, launch: Launch, node: int, program: str, work: Workspace) -> list[str]:
    """DeepSpeed's runner for all nodes (or, with `each_node`, for this one); the folder is to be added."""
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", hosts.path, "--force_multi"]
    runner += ["--master_addr", launch.address, "--master_port", str(launch.port), "--no_local_rank", "--module"]
    if run.launcher == "each_node":
        return [*runner, "--no_ssh", "--node_rank", str(node), program]
    variables = [f"{name}={os.environ[name]}" for name in _TOLD if name in os.environ]
    return [*runner, "--no_ssh_check", "--launcher", run.launcher, ENTRY, work.uri + _name(launch.id), *variables]


def announce(work: Workspace, launch: Launch, spec: Mapping[str, Any]) -> None:
    """Put the launch where its other nodes find it: nothing secret, and nothing that says what is run there."""
    work.put_json(_name(launch.id), {"launch": asdict(launch), "spec": dict(spec)})
    work.put_json("launch.json", launch.id)


def announced(work: Workspace) -> Launch | None:
    """The last launch of the first node."""
    if not work.has("launch.json"):
        return None
    return Launch(**work.get_json(_name(work.get_json("launch.json")))["launch"])


def next_launch(work: Workspace, node: int) -> Launch | None:
    """The first node's launch, once its ranks wait for the others. A node takes part in each of them once."""
    launch = announced(work)
    if launch is None or not launch.answers():
        return None
    joined = f"{work.uri}launch/{launch.id}-node-{node}"
    return launch if storage.put(joined, b"", only_if_absent=True) else None


def tell_error(work: Workspace, launch_id: str, error: DistilflowError) -> None:
    """Leave for the first node why this one fails, if another try could not help."""
    if not is_retryable(error):
        failure = {"code": error.exit_code, "message": f"on {socket.gethostname()}: {error}"}
        storage.put(f"{work.uri}launch/{launch_id}-error.json", json.dumps(failure).encode(), only_if_absent=True)


def reported_error(work: Workspace, launch_id: str) -> DistilflowError | None:
    """Why a node said that it fails."""
    data = storage.get(f"{work.uri}launch/{launch_id}-error.json")
    if data is None:
        return None
    failure = json.loads(data)
    return BY_EXIT_CODE[failure["code"]](failure["message"])


def _name(launch_id: str) -> str:
    return f"launch/{launch_id}.json"


def _is_here(host: str) -> bool:
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(addresses & {a.address for found in psutil.net_if_addrs().values() for a in found})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
