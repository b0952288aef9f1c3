"""`distilflow metrics`: what the records in storage and the Prefect server say, as figures that Prometheus scrapes.

Every finished artifact counts once, by its record, which each scrape reads. Figures fall when `distilflow gc` deletes
artifacts, so all of them are gauges.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import NamedTuple
from wsgiref.simple_server import WSGIServer

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterState, TaskRunFilterStateType
from prefect.client.schemas.objects import StateType
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from flows.commands.gc import KINDS
from infra import settings
from infra.errors import ConfigurationError, DistilflowError
from infra.measured import Measured, measured
from infra.orchestration.names import stage_of
from infra.store import storage
from infra.store.artifacts import Record, read_record
from tasks.report.stage import KIND as REPORT

_AT_ONCE = 8  # records
_PAGE = 200  # task runs, as many as the server gives at once
_OUTCOMES = (StateType.RUNNING, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)
_OF_ARTIFACTS: dict[str, tuple[str, Callable[[Measured], float]]] = {
    "artifacts": ("Finished artifacts", lambda _: 1),
    "seconds": ("Seconds that making them took", lambda one: one.seconds),
    "device_seconds": ("The same times the ranks of a training", lambda one: one.seconds * one.devices),
    "rows": ("Rows in them", lambda one: one.rows),
    "tokens": ("Tokens in them", lambda one: one.tokens),
    "usd": ("Dollars that providers were paid for them", lambda one: one.usd),
}


class Labels(NamedTuple):
    """Of which stage, and of whose report: "several" where reports of several models are made from it, "" of none."""

    stage: str
    student: str
    teacher: str


class Figures(Collector):
    """Read anew at every scrape. A source that does not answer is said to be down; the other is told all the same."""

    def collect(self) -> Iterable[GaugeMetricFamily]:
        up = GaugeMetricFamily("distilflow_up", "Whether the source answered", labels=["source"])
        for source, read in (("storage", _of_storage), ("prefect", _of_prefect)):
            try:
                found, answered = list(read()), True
            except (DistilflowError, httpx.HTTPError):
                found, answered = [], False
            up.add_metric([source], float(answered))
            yield from found
        yield up


def _of_storage() -> Iterator[GaugeMetricFamily]:
    found: defaultdict[Labels, list[Measured]] = defaultdict(list)
    for labels, one in labelled(_records()):
        found[labels].append(one)
    for name, (text, of) in _OF_ARTIFACTS.items():
        yield _family(name, text, {labels: sum(map(of, ones)) for labels, ones in found.items()})
    read = {labels: sum(one.tokens_s * one.seconds for one in ones) for labels, ones in found.items()}
    rates = {labels: tokens / sum(one.seconds for one in found[labels]) for labels, tokens in read.items() if tokens}
    yield _family("tokens_per_second", "Tokens a second while they were made (of trainings: of all epochs)", rates)


def _records() -> dict[str, Record]:
    """Of all finished artifacts, by address. A folder may be listed that holds nothing any more."""
    bucket = f"s3://{settings.bucket()}/"
    there = [f"{bucket}{kind}/{name}/" for kind in KINDS for name in storage.folders(f"{bucket}{kind}/")]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return {uri: record for uri, record in zip(there, pool.map(read_record, there), strict=True) if record}


def labelled(records: dict[str, Record]) -> Iterator[tuple[Labels, Measured]]:
    """What each artifact took, and of whose report it is, where all that are made from it are of the same models."""
    of: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for uri, record in records.items():
        if record.kind == REPORT:
            about = record.spec["about"]
            for used in (uri, *(ref.uri for ref in record.inputs.values())):
                of[used].add((about["student"], about["teacher"]))
    for uri, record in records.items():
        students, teachers = ({pair[place] for pair in of[uri]} for place in (0, 1))
        yield Labels(record.kind, _only(students), _only(teachers)), measured(record)


def _only(names: set[str]) -> str:
    return "several" if len(names) > 1 else next(iter(names), "")


def _family(name: str, text: str, values: dict[Labels, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"distilflow_{name}", text, labels=Labels._fields)
    for labels, value in sorted(values.items()):
        family.add_metric(labels, value)
    return family


def _of_prefect() -> Iterator[GaugeMetricFamily]:
    """Stages that are running or did not end well, after all tries, as far back as the server remembers."""
    family = GaugeMetricFamily("distilflow_stages", "Stages by their outcome", labels=["stage", "outcome"])
    for outcome in _OUTCOMES:
        for stage, count in sorted(Counter(_stages_that_are(outcome)).items()):
            family.add_metric([stage, outcome.value.lower()], count)
    yield family


def _stages_that_are(state: StateType) -> Iterator[str]:
    asked = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[state]), name=None))
    with get_client(sync_client=True) as client:
        for offset in itertools.count(0, _PAGE):
            page = client.read_task_runs(task_run_filter=asked, limit=_PAGE, offset=offset)
            yield from filter(None, (stage_of(run.tags) for run in page))
            if len(page) < _PAGE:
                return


def serve(port: int, host: str) -> None:
    """Answer scrapes until Ctrl-C."""
    server, thread = start(port, host)
    print(f"http://{host}:{server.server_port}/metrics")
    thread.join()


def start(port: int, host: str) -> tuple[WSGIServer, Thread]:
    """The server, and the thread that it runs in. Raises ConfigurationError where it cannot listen there."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Figures())
    try:
        return start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ConfigurationError(
            f"nothing can listen on {host}:{port}: {error.strerror}; choose another --port"
        ) from error
