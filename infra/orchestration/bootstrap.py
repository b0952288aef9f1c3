"""What a fresh Prefect server needs for distilflow: work pools, limits, failure notifications, deployments.

One of the few files in `infra` that import Prefect. Everything is created where it is missing and left as it is
where it exists, so that what people set by hand stays; a number given as a flag is set.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.workers.process import ProcessWorker

from infra import devices
from infra.errors import ConfigurationError, TransientError
from infra.orchestration import limits, notifications

ROOT = Path(__file__).parents[2]
_CPU_RUNS = 16  # flows in this pool mostly wait for the stages that they dispatched
_DESCRIPTIONS = {
    "cpu": "Flows, and stages without an engine; on one machine: `distilflow worker cpu`",
    "gpu": "Training, scoring and evaluation; on one machine: `distilflow worker gpu`",
}


def bootstrap(gpus: int | None, llm: Mapping[str, int], kubernetes: bool, redeploy: bool, root: Path = ROOT) -> None:
    """Bring the server of PREFECT_API_URL to what distilflow needs; says each thing and what was done.

    `gpus` and `llm` (provider → requests in flight) are set where given. Raises ConfigurationError or TransientError.
    """
    try:
        with get_client(sync_client=True) as client:
            slots = gpus or max(1, devices.gpus())
            _work_pool(client, "cpu", "process", _process_template(), _CPU_RUNS, given=False)
            _work_pool(client, "gpu", "process", _process_template(), slots, given=gpus is not None)
            if kubernetes:
                for kind, runs in (("cpu", _CPU_RUNS), ("gpu", slots)):
                    given = kind == "gpu" and gpus is not None
                    _work_pool(client, f"kubernetes-{kind}", "kubernetes", _kubernetes_template(kind), runs, given)
            _limit(client, limits.GPU, slots, given=gpus is not None)
            for provider, requests in sorted(llm.items()):
                _limit(client, f"llm-{provider}", requests, given=True)
            _tell(*notifications.create_automation(client))
            _deployments(client, root, redeploy)
    except httpx.TransportError as error:
        raise TransientError(f"the Prefect server at {PREFECT_API_URL.value()} does not answer: {error!r}") from error


def _tell(done: str, what: str) -> None:
    print(f"{done:<9} {what}", flush=True)


def _work_pool(
    client: SyncPrefectClient, name: str, kind: str, template: dict[str, Any], runs: int, given: bool
) -> None:
    what = f"work pool {name} ({kind}"
    try:
        known = client.read_work_pool(name)
    except ObjectNotFound:
        description = _DESCRIPTIONS.get(name, _DESCRIPTIONS.get(name.removeprefix("kubernetes-")))
        client.create_work_pool(
            WorkPoolCreate(
                name=name, type=kind, description=description, base_job_template=template, concurrency_limit=runs
            )
        )
        _tell("created", f"{what}, {runs} runs at a time)")
        return
    if known.type != kind:
        raise ConfigurationError(
            f"the work pool {name!r} of this Prefect server is of type {known.type!r}, not {kind!r}: "
            f"delete it (`prefect work-pool delete {name}`) or use another server"
        )
    if given and known.concurrency_limit != runs:
        client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=runs))
        _tell("updated", f"{what}, {known.concurrency_limit} → {runs} runs at a time)")
        return
    at_once = f"{known.concurrency_limit} runs at a time" if known.concurrency_limit is not None else "no limit"
    other = kind == "kubernetes" and known.base_job_template != template
    hint = "; its job template is not the shipped one any more" if other else ""
    _tell("as is", f"{what}, {at_once}){hint}")


def _process_template() -> dict[str, Any]:
    return ProcessWorker.get_default_base_job_template()


def _kubernetes_template(kind: str) -> dict[str, Any]:
    template: dict[str, Any] = json.loads(resources.files("infra").joinpath(f"kubernetes/{kind}-pool.json").read_text())
    return template


def _limit(client: SyncPrefectClient, name: str, slots: int, given: bool) -> None:
    if limits.create_missing(client, name, slots):
        _tell("created", f"limit {name} ({slots} at a time)")
        return
    known = client.read_global_concurrency_limit_by_name(name).limit
    if given and known != slots:
        client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(limit=slots))
        _tell("updated", f"limit {name} ({known} → {slots} at a time)")
    else:
        _tell("as is", f"limit {name} ({known} at a time)")


def _deployments(client: SyncPrefectClient, root: Path, redeploy: bool) -> None:
    """Those of prefect.yaml, by Prefect's own `deploy`: it would overwrite what people changed in the UI."""
    path = root / "prefect.yaml"
    if not path.exists():
        _tell("left out", f"deployments: there is no {path.name} in {root}")
        return
    wanted = {entry["name"]: entry["entrypoint"] for entry in yaml.safe_load(path.read_text())["deployments"]}
    existing = {(deployment.name, deployment.entrypoint) for deployment in _all_deployments(client)}
    missing = [name for name, entrypoint in wanted.items() if redeploy or (name, entrypoint) not in existing]
    if missing:
        _deploy(root, ["--all"] if len(missing) == len(wanted) else [f"--name={name}" for name in missing])
    for name, entrypoint in wanted.items():
        known = (name, entrypoint) in existing
        _tell("updated" if known and redeploy else "as is" if known else "created", f"deployment {name} ({entrypoint})")


def _all_deployments(client: SyncPrefectClient) -> list[Any]:
    found: list[Any] = []
    while page := client.read_deployments(limit=200, offset=len(found)):
        found += page
    return found


def _deploy(root: Path, which: list[str]) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *which]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise ConfigurationError(f"`prefect deploy {' '.join(which)}` failed in {root}:\n{tail}")
