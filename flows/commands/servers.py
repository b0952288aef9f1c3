"""The commands about servers and what runs on them: `up`, `down`, `status`, `bootstrap`, `worker`, `metrics`.

What a command needs is imported when it is called: `--help` answers at once.
"""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter, validators

from infra.services import background, embedded


def up(port: int | None = None) -> None:
    """Start SeaweedFS and the Prefect server with its UI, and keep them running.

    Parameters
    ----------
    port
        Port of the Prefect UI (default: 4200, or a free one).
    """
    background.up(port)


def down(*, now: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Stop what `up` started; all data stay under .distilflow/. Refused while runs are under way or workers run.

    Parameters
    ----------
    now
        Stop all the same: runs under way fail, and continue from what is finished when they are started again.
    """
    background.down(now=now)


def status() -> None:
    """Say whether the services of `up` run, and where."""
    background.status()


def bootstrap(
    *,
    gpus: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    llm: dict[str, int] | None = None,
    kubernetes: bool = False,
    redeploy: bool = False,
) -> None:
    """Create work pools, limits, failure notifications and deployments on the Prefect server; repeatable.

    Parameters
    ----------
    gpus
        GPUs of all workers together: how many stages may hold at a time (default: this machine's, or 1).
    llm
        Requests in flight to an LLM provider, over all runs: --llm.openai 512.
    kubernetes
        Create the work pools kubernetes-cpu and kubernetes-gpu too.
    redeploy
        Bring the deployments that exist back to prefect.yaml, after an update of distilflow.
    """
    with embedded.lasting_services("prefect"):
        from infra.orchestration.bootstrap import bootstrap

        bootstrap(gpus, llm or {}, kubernetes, redeploy)


def worker(
    pool: Literal["cpu", "gpu"], *, limit: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None
) -> None:
    """Take runs of a work pool on this machine, until Ctrl-C; what is under way then goes back to the queue.

    Parameters
    ----------
    pool
        cpu or gpu.
    limit
        Runs at a time on this machine (default: the pool's limit).
    """
    with embedded.lasting_services():
        from infra.orchestration.worker import run_worker

        run_worker(pool, limit)


def metrics(
    *, port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 9464, host: str = "127.0.0.1"
) -> None:
    """Answer Prometheus until Ctrl-C: tokens a second, rows, dollars, device seconds, stages by outcome.

    Parameters
    ----------
    port
        Where it listens.
    host
        The address that it listens on; there is no password, and the answers name your models.
    """
    with embedded.lasting_services():
        from flows.commands.metrics import serve

        serve(port, host)
