"""What a run leaves on its own page in the Prefect UI: a link that opens its report, texts and tables."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.runtime import flow_run

from flows.distill import distill
from flows.pipeline import titles
from flows.recipe import Recipe
from infra.errors import ConfigurationError
from infra.orchestration import progress as progress_module
from infra.orchestration import view as module
from infra.orchestration.progress import RunProgress
from infra.orchestration.run import Stages
from infra.orchestration.view import stage_view
from infra.services import prefect_server
from infra.services.embedded import Services
from infra.stage import Made, OneArtifact, View
from infra.store import storage
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.models import ModelSource
from tests.support.browser import logged_in, page
from tests.support.wait import wait_for

ROOT = Path(__file__).parents[2]
PUBLISHING = {
    "create_table_artifact",
    "table",
    "markdown",
    "page",
    "publish_table",
    "publish_markdown",
    "whatever_the_server_says",
}
HTML = "<!doctype html><title>of the run</title><h1>Which student is best</h1>"

pytestmark = [pytest.mark.usefixtures("prefect")]


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@flow(name="shows")
def shows(uri: str) -> str:
    with stage_view("report", "writing the report") as view:
        view.page("report-page", uri, "report")
        view.note("shown")
    return str(flow_run.id)


def _shown(bucket: str) -> str:
    storage.put(uri := f"s3://{bucket}/report/f/report.html", HTML.encode())
    return shows(uri)


def _artifacts(client: SyncPrefectClient, run: str) -> dict[str, Artifact]:
    its = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(run)]))
    return {artifact.key or "": artifact for artifact in client.read_artifacts(artifact_filter=its)}


def _log(client: SyncPrefectClient, run: str, last: str) -> str:
    """What the run's log on the server holds, once its last line is there."""
    of = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[UUID(run)]))

    def told() -> str:
        return "\n".join(log.message for log in client.read_logs(of))

    wait_for(lambda: last in told())
    return told()


def _address(artifact: Artifact) -> str:
    found = re.search(r"\]\((.*?)\)", str(artifact.data))
    assert found
    return found[1]


def test_the_link_among_a_runs_artifacts_opens_its_report(services: Services, home: Path, bucket: str) -> None:
    run = _shown(bucket)
    with page() as ui:
        logged_in(ui, prefect_server.password(home))
        ui.goto(f"{services.prefect_ui_url}/runs/flow-run/{run}")
        ui.get_by_text("Artifacts", exact=True).first.click()
        ui.get_by_text("The link to the report, until").click()
        with ui.context.expect_page() as opened:
            ui.get_by_role("link", name="Open the report", exact=True).click()
        opened.value.get_by_role("heading", name="Which student is best").wait_for()


def test_the_link_is_signed_for_a_week_and_holds_no_key(client: SyncPrefectClient, bucket: str) -> None:
    artifact = _artifacts(client, _shown(bucket))["report-page"]
    address = _address(artifact)
    asked = parse_qs(urlsplit(address).query)
    assert asked["X-Amz-Expires"] == ["604800"]
    assert asked["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in f"{artifact.data}{artifact.description}"
    with urllib.request.urlopen(address, timeout=20) as answer:
        assert (answer.read(), answer.headers["content-type"]) == (HTML.encode(), "text/html; charset=utf-8")
    for other in (address.split("?")[0], address.replace("report.html", "data.json")):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(other, timeout=20)


def test_no_log_holds_the_link(
    client: SyncPrefectClient, bucket: str, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = _shown(bucket)
    signature = parse_qs(urlsplit(_address(_artifacts(client, run)["report-page"])).query)["X-Amz-Signature"][0]
    told = _log(client, run, "report: shown") + caplog.text
    assert signature not in told + "".join(path.read_text() for path in (home / "logs").iterdir())


def test_a_server_that_takes_no_artifact_fails_no_run_and_its_refusal_tells_no_link(
    client: SyncPrefectClient, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect repeats in its refusal what it was sent."""

    def refused(link: str, *_: Any, **__: Any) -> None:
        answer = httpx.Response(422, request=httpx.Request("POST", "http://prefect/artifacts"))
        raise httpx.HTTPStatusError(f"422: {link}", request=answer.request, response=answer)

    monkeypatch.setattr(module, "create_link_artifact", refused)
    told = _log(client, _shown(bucket), "report: shown")
    assert "the Prefect server does not take the artifact report-page (status 422)" in told
    assert "X-Amz" not in told


class Words(OneArtifact):
    """A stage that says what it took."""

    kind: ClassVar = "words"
    makes: ClassVar = ("words",)
    doing: ClassVar = "counting"

    of: str
    tries: int = 1

    @property
    def title(self) -> str:
        return f"words_{self.of}"

    def workspace(self) -> Workspace:
        return Workspace("words", 1, {"of": self.of}, {})

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        if self.tries == 0:
            raise ConfigurationError("no words")
        usage = {"judge": {"cost_usd": 3.0, "paid_usd": 1.25}, "writer": {"cost_usd": 0.25, "paid_usd": 0.25}}
        return work.publish((), {"rows": 30, "tokens": 9000}, {"usage": usage}, seconds=4.0)

    def show(self, made: Made, view: View) -> str:
        return ""


@flow(name="of-stages")
def of_stages(*kinds: str, fails: str = "") -> str:
    progress = RunProgress(["words_a", "words_b", "words_never"])
    stages = Stages(progress=progress)
    with contextlib.suppress(ConfigurationError):
        for kind in kinds:
            stages.run(Words(of=kind, tries=int(kind != fails)))
        progress.ends()
    return str(flow_run.id)


def _table(client: SyncPrefectClient, run: str) -> tuple[list[list[str]], str]:
    artifact = _artifacts(client, run)["stages"]
    assert artifact.task_run_id is None, "it is the run's, above those of its stages"
    return [list(row.values()) for row in json.loads(str(artifact.data))], str(artifact.description)


@pytest.mark.usefixtures("bucket")
def test_a_runs_table_of_stages_says_what_each_took(client: SyncPrefectClient) -> None:
    rows, said = _table(client, of_stages("a", "other"))
    assert rows == [
        ["words_a", "done", "4", "7.5", "2,250", "1.50", ""],
        ["words_b", "not needed", "", "", "", "", ""],
        ["words_never", "not needed", "", "", "", "", ""],
        ["words_other", "done", "4", "7.5", "2,250", "1.50", ""],
    ]
    assert said == "2 of 2 stages · $3.00 so far"
    twice, said = _table(client, of_stages("b", "b"))
    assert twice[1] == ["words_b", "done", "4", "7.5", "2,250", "1.50", ""], "asked for again, it stays as it was made"
    assert said == "1 of 1 stages · $1.50 so far"
    again, said = _table(client, of_stages("a", "c", fails="c"))
    assert [row[:2] for row in again[:2]] == [["words_a", "found"], ["words_b", "to do"]]
    assert again[3][:2] == ["words_c", "failed"]
    assert again[0][2:] == [""] * 5, "what another run took is no rate of this one"
    assert said == "1 of 4 stages · $0.00 so far"


def test_the_table_says_how_the_stage_gets_on_that_is_going_on(client: SyncPrefectClient) -> None:
    @flow(name="gets-on")
    def gets_on() -> str:
        progress = RunProgress(["kd"])
        progress.begins("kd")
        progress.tells("kd", "distilling · 120 of 400 · 3.0/s · about 2 min left")
        return str(flow_run.id)

    rows, said = _table(client, gets_on())
    assert rows == [["kd", "going on", "", "", "", "", "distilling · 120 of 400 · 3.0/s · about 2 min left"]]
    assert said == "0 of 1 stages · $0.00 so far · kd · distilling · 120 of 400 · 3.0/s · about 2 min left"


def test_a_view_tells_its_run_how_it_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOG_INTERVAL_S", 0.0)
    heard: list[str] = []

    @flow(name="ticks")
    def ticks() -> None:
        with stage_view("kd", "distilling", heard.append) as view:
            view.tick(0, 400)
            wait_for(lambda: heard == ["distilling · 0 of 400"])
            view.tick(120, 400)
            wait_for(lambda: len(heard) == 2)

    ticks()
    assert re.fullmatch(r"distilling · 120 of 400 · [\d.]+/s · about \d+ s left", heard[1])


def test_a_server_that_takes_no_table_fails_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("away")

    monkeypatch.setattr(progress_module, "create_table_artifact", away)
    assert of_stages()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "seeds augment sft logits sft_control kd evaluate"),
        ({"order": "kd_sft"}, "seeds augment sft logits sft_control kd sft_after_kd evaluate"),
        ({"quantise": {"formats": ["int8"]}}, "seeds augment sft logits sft_control kd kd_int8 evaluate"),
    ],
)
def test_the_stages_of_a_run_are_foreseen_in_order(more: dict[str, Any], expected: str) -> None:
    recipe = Recipe.of(distill.validate_parameters(more))
    models = (ModelSource(name="student"), ModelSource(name="teacher"))
    assert titles(recipe, *models, {}) == expected.split()


def test_every_artifact_of_the_ui_is_in_the_table_of_the_docs() -> None:
    text = (ROOT / "docs" / "server.md").read_text()
    table = text[text.index("| key |") :].split("\n\n")[0]
    named = [key for row in table.splitlines()[2:] for key in re.findall(r"`(.+?)`", row.split("|")[1])]
    assert sorted(named) == sorted(_keys())


def _keys() -> set[str]:
    """First arguments of what publishes an artifact; what differs between runs in them as "…"."""
    found = set()
    for folder in ("flows", "tasks", "infra"):
        for path in (ROOT / folder).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text())):
                if isinstance(call, ast.Call) and call.args and _name(call.func) in PUBLISHING:
                    found |= _texts(call.args[0])
    return found


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _texts(key: ast.expr) -> set[str]:
    """The string that a key is, or is made of; none of a variable."""
    if isinstance(key, ast.Constant):
        return {str(key.value)}
    made = [part for part in ast.walk(key) if isinstance(part, ast.JoinedStr)]
    return {"".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in one.values) for one in made}
