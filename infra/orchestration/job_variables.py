"""What a run elsewhere asks of its work pool: variables of the pool's job template, such as a pod's GPUs.

A stage's own needs are passed where the pool has a variable for them (those of `infra/kubernetes`; a process pool has
none), and where nobody has set it: what the deployment says stands before that, and what the run says before both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefect.client.orchestration import SyncPrefectClient

from infra.errors import ConfigurationError
from infra.needs import Needs

_GIB = 2**30


def job_variables(
    client: SyncPrefectClient, deployment: str, needs: Callable[[], Needs | None], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Those of a run of `deployment`; `needs` is asked only where the pool could give them.

    Raises ConfigurationError for a `given` one that the pool does not have, ObjectNotFound for an unknown deployment.
    """
    found = client.read_deployment_by_name(deployment)
    declared = _declared(client, found.work_pool_name)
    if unknown := [name for name in given if name.partition(".")[0] not in declared]:
        known = f"it has {', '.join(sorted(declared))}" if declared else "it has none"
        raise ConfigurationError(
            f"job_variables: the work pool {found.work_pool_name!r} of {deployment!r} has no {unknown[0]!r}: {known}"
        )
    settled = {**(found.job_variables or {}), **given}
    open_to_us = OF_NEEDS.keys() & declared.keys() - settled.keys()
    if "memory_limit" in settled or "default" in declared.get("memory_limit", {}):
        open_to_us -= {"memory_request"}  # which must not be more
    needed = needs() if open_to_us else None
    return {name: OF_NEEDS[name](needed) for name in sorted(open_to_us) if needed} | dict(given)


def _declared(client: SyncPrefectClient, pool: str | None) -> dict[str, Any]:
    """The variables of a pool's job template, with their schemas."""
    if pool is None:
        return {}
    declared: dict[str, Any] = client.read_work_pool(pool).base_job_template.get("variables", {}).get("properties", {})
    return declared


def _gibibytes(size: int) -> str:
    return f"{-(-size // _GIB)}Gi"


OF_NEEDS: dict[str, Callable[[Needs], Any]] = {
    "gpus": lambda needs: needs.gpus,
    "shared_memory": lambda needs: _gibibytes(needs.shared_memory),
    "memory_request": lambda needs: _gibibytes(needs.memory),
    "cpu_request": lambda needs: str(needs.cores),
}
