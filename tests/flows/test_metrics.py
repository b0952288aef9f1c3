"""What Prometheus scrapes is what the records and the Prefect server say, to the digit, over HTTP."""

from __future__ import annotations

import contextlib
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import flow

from flows.commands import metrics
from infra.errors import ConfigurationError
from infra.orchestration.run import Stages
from infra.store import storage
from infra.store.artifacts import RECORD, ArtifactRef, Workspace
from tests.flows.test_run_page import Words
from tests.support.wait import wait_for

pytestmark = [pytest.mark.usefixtures("prefect", "bucket")]


@pytest.fixture
def url() -> Iterator[str]:
    server, _ = metrics.start(0, "127.0.0.1")
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()


def _scraped(url: str, *names: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        lines = [line.rpartition(" ") for line in answer.read().decode().splitlines() if not line.startswith("#")]
    found = {name.removeprefix("distilflow_"): float(value) for name, _, value in lines}
    return {name: value for name, value in found.items() if name.split("{")[0] in names}


def _made(kind: str, of: str, counts: dict[str, int], facts: dict[str, Any], seconds: float) -> ArtifactRef:
    return Workspace(kind, 1, {"of": of}, {}).publish((), counts, facts, seconds)


def _report(student: str, teacher: str, **stages: ArtifactRef) -> ArtifactRef:
    about = {"student": student, "teacher": teacher, "of": [ref.uri for ref in stages.values()]}
    return Workspace("report", 1, {"about": about}, stages).publish((), {}, {}, 1.0)


def _labels(stage: str, student: str = "", teacher: str = "") -> str:
    return f'{{stage="{stage}",student="{student}",teacher="{teacher}"}}'


def test_every_artifact_counts_once_under_the_models_of_its_reports(url: str) -> None:
    usage = {"rewriting": {"cost_usd": 5.0, "paid_usd": 1.5}, "selection": {"cost_usd": 0.25, "paid_usd": 0.25}}
    rows = _made("augment", "x", {"rows": 40}, {"usage": usage}, 10.0)
    ranks = {"ranks": 8, "tokens_s": 1000}
    small = _made("kd", "0.5B", {"rows": 40, "supervised_tokens": 900}, ranks, 30.0)
    more = _made("kd", "0.5B, longer", {"rows": 40, "supervised_tokens": 900}, {**ranks, "tokens_s": 4000}, 60.0)
    large = _made("kd", "3B", {"rows": 20, "supervised_tokens": 500}, {}, 100.0)
    scores = _made("logits", "of no report", {"rows": 7, "tokens": 84}, {}, 21.0)
    assert scores.exists
    _report("0.5B", "14B", augment=rows, kd=small)
    _report("0.5B", "14B", augment=rows, kd=more)
    _report("3B", "14B", augment=rows, kd=large)
    shared, ours, theirs = (
        _labels("augment", "several", "14B"),
        _labels("kd", "0.5B", "14B"),
        _labels("kd", "3B", "14B"),
    )
    found = _scraped(url, "up", "artifacts", "seconds", "device_seconds", "rows", "tokens", "usd", "tokens_per_second")
    of = {name: value for name, value in found.items() if "report" not in name and value != 0}
    alone = _labels("logits")
    assert of == {
        'up{source="storage"}': 1,
        'up{source="prefect"}': 1,
        f"artifacts{shared}": 1,
        f"artifacts{ours}": 2,
        f"artifacts{theirs}": 1,
        f"artifacts{alone}": 1,
        f"seconds{shared}": 10,
        f"seconds{ours}": 90,
        f"seconds{theirs}": 100,
        f"seconds{alone}": 21,
        f"device_seconds{shared}": 10,
        f"device_seconds{ours}": 720,
        f"device_seconds{theirs}": 100,
        f"device_seconds{alone}": 21,
        f"rows{shared}": 40,
        f"rows{ours}": 80,
        f"rows{theirs}": 20,
        f"rows{alone}": 7,
        f"tokens{ours}": 1800,
        f"tokens{theirs}": 500,
        f"tokens{alone}": 84,
        f"usd{shared}": 1.75,
        f"tokens_per_second{ours}": 3000,
        f"tokens_per_second{theirs}": 5,
        f"tokens_per_second{alone}": 4,
    }
    assert found[f"artifacts{_labels('report', '0.5B', '14B')}"] == 2


def test_a_later_scrape_sees_what_was_made_and_deleted_since(url: str) -> None:
    first = _made("sft", "first", {"rows": 3}, {}, 2.0)
    assert _scraped(url, "rows") == {f"rows{_labels('sft')}": 3}
    _made("sft", "second", {"rows": 4}, {}, 2.0)
    assert _scraped(url, "rows") == {f"rows{_labels('sft')}": 7}
    storage.delete(first.uri + RECORD)
    assert _scraped(url, "rows") == {f"rows{_labels('sft')}": 4}


def test_a_stage_that_failed_is_told_by_its_outcome(url: str) -> None:
    @flow(name="fails")
    def fails() -> None:
        with contextlib.suppress(ConfigurationError):
            Stages().run(Words(of="metrics", tries=0))
        Stages().run(Words(of="finished"))

    fails()
    failed = 'stages{outcome="failed",stage="words_metrics"}'
    wait_for(lambda: failed in {_ordered(name) for name in _scraped(url, "stages")})
    found = {_ordered(name): value for name, value in _scraped(url, "stages").items()}
    assert found[failed] == 1
    assert not [name for name in found if "words_finished" in name]


def _ordered(name: str) -> str:
    kind, _, labels = name.rstrip("}").partition("{")
    return f"{kind}{{{','.join(sorted(labels.split(',')))}}}"


def test_without_prefect_the_figures_of_storage_are_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(**_: Any) -> None:
        raise httpx.ConnectError("away")

    _made("sft", "alone", {"rows": 3}, {}, 2.0)
    monkeypatch.setattr(metrics, "get_client", away)
    up = {'up{source="storage"}': 1, 'up{source="prefect"}': 0}
    assert _scraped(url, "up", "rows") == {**up, f"rows{_labels('sft')}": 3}


def test_a_port_that_is_taken_is_said_in_a_sentence(url: str) -> None:
    port = int(url.split(":")[2].split("/")[0])
    with pytest.raises(ConfigurationError, match=f"nothing can listen on 127.0.0.1:{port}: .*choose another --port"):
        metrics.start(port, "127.0.0.1")


def test_every_metric_is_in_the_docs(url: str) -> None:
    with urllib.request.urlopen(url, timeout=60) as answer:
        told = set(re.findall(r"# TYPE (\w+) gauge", answer.read().decode()))
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert told == set(re.findall(r"`(distilflow_\w+)`", text))
