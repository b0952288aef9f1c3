"""`distilflow bootstrap` against a real Prefect server: repeatable, and it leaves what people set."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate, WorkPoolUpdate

from infra.errors import ConfigurationError
from infra.orchestration.notifications import apprise_address
from tests.support.own_server import OwnServer, own_server
from tests.support.wait import wait_for

_PREFECT_YAML = """
pull: # no code is fetched, and without a step `prefect deploy` wants a file
- prefect.deployments.steps.set_working_directory: {directory: "."}
deployments:
- name: engine
  entrypoint: tests.support.own_flows.engine
  work_pool: {name: cpu}
  schedules:
  - {slug: weekly, cron: "0 3 * * 0", active: false}
- name: failing
  entrypoint: tests.support.own_flows.failing
  work_pool: {name: cpu}
  concurrency_limit: 2
"""
_SECRET = "T0PSECRET"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[OwnServer]:
    with own_server(tmp_path_factory.mktemp("bootstrap"), database) as running:
        yield running


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    (folder / "prefect.yaml").write_text(_PREFECT_YAML)
    return folder


def _bootstrap(server: OwnServer, root: Path, call: str = "", **environment: str) -> list[str]:
    """Its lines. `call` is what comes after gpus and llm."""
    code = "import sys; from pathlib import Path; from infra.orchestration.bootstrap import bootstrap; "
    code += f"bootstrap(**{{'gpus': None, 'llm': {{}}, 'kubernetes': False, 'redeploy': False, {call}}}, "
    code += f"root=Path({str(root)!r}))"
    env = {**server.env, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_fresh_server_gets_everything_and_a_second_run_changes_nothing(server: OwnServer, root: Path) -> None:
    first = _bootstrap(server, root)
    assert first == [
        "created   work pool cpu (process, 16 runs at a time)",
        "created   work pool gpu (process, 1 runs at a time)",
        "created   limit gpu (1 at a time)",
        first[3],
        "created   deployment engine (tests.support.own_flows.engine)",
        "created   deployment failing (tests.support.own_flows.failing)",
    ]
    assert first[3].startswith(
        "left out  failure notifications ('distilflow: a run failed'): set DISTILFLOW_NOTIFY_URL"
    )
    second = _bootstrap(server, root)
    assert [line.split("  ")[0] for line in second] == ["as is"] * 3 + ["left out"] + ["as is"] * 2


def test_numbers_set_by_hand_stay_until_a_flag_names_others(server: OwnServer, root: Path) -> None:
    _bootstrap(server, root)
    with get_client(sync_client=True) as client:
        client.update_global_concurrency_limit("gpu", GlobalConcurrencyLimitUpdate(limit=5))
        client.update_work_pool("gpu", WorkPoolUpdate(concurrency_limit=3))
        engine = client.read_deployment_by_name("engine/engine")
        client.update_deployment_schedule(engine.id, engine.schedules[0].id, active=True)
        lines = _bootstrap(server, root)
        assert "as is     work pool gpu (process, 3 runs at a time)" in lines
        assert "as is     limit gpu (5 at a time)" in lines
        assert client.read_deployment_by_name("engine/engine").schedules[0].active
        lines = _bootstrap(server, root, "'gpus': 8, 'llm': {'openai': 512}")
        assert "updated   work pool gpu (process, 3 → 8 runs at a time)" in lines
        assert "updated   limit gpu (5 → 8 at a time)" in lines
        assert "created   limit llm-openai (512 at a time)" in lines
        assert client.read_global_concurrency_limit_by_name("gpu").limit == 8
        lines = _bootstrap(server, root, "'redeploy': True")
        assert "updated   deployment engine (tests.support.own_flows.engine)" in lines
        assert not client.read_deployment_by_name("engine/engine").schedules[0].active


def test_without_a_server_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    from tests.support import cli

    done = cli.run("bootstrap", DISTILFLOW_HOME=str(tmp_path), PREFECT_API_URL="")
    assert done.returncode == 78
    assert done.stderr == "distilflow: no prefect is running: run `make up`, or set PREFECT_API_URL\n"


class _Messages(http.server.BaseHTTPRequestHandler):
    received: ClassVar[list[tuple[str, dict[str, str]]]]
    answer: ClassVar[int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).received.append((self.path, json.loads(body)))
        self.send_response(type(self).answer)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_failing_run_leads_to_one_message_and_the_address_stays_secret(server: OwnServer, root: Path) -> None:
    class Messages(_Messages):
        received: ClassVar = []
        answer = 200

    endpoint = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Messages)
    threading.Thread(target=endpoint.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{endpoint.server_port}/hooks/{_SECRET}?token={_SECRET}"
    lines = _bootstrap(server, root, DISTILFLOW_NOTIFY_URL=url)
    assert "created   failure notifications ('distilflow: a run failed')" in lines
    again = _bootstrap(server, root, DISTILFLOW_NOTIFY_URL=url)
    assert "as is     failure notifications ('distilflow: a run failed')" in again

    code = "from tests.support import own_flows; own_flows.failing()"
    env = {**server.env, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=False)
    wait_for(lambda: bool(Messages.received))
    time.sleep(5)
    assert len(Messages.received) == 1
    path, message = Messages.received[0]
    assert path == f"/hooks/{_SECRET}?token={_SECRET}"
    for part in ("distill small-from-large: Failed", "the seeds are empty", "http://127.0.0.1:", "/runs/flow-run/"):
        assert part in message["text"]

    Messages.answer = 500  # what goes wrong is logged, without the address
    subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=False)
    wait_for(lambda: len(Messages.received) > 1)
    time.sleep(3)
    endpoint.shutdown()
    assert _SECRET not in server.server.log.read_text()
    assert _SECRET not in "".join(lines + again)


def test_an_address_that_nobody_understands_is_refused_in_a_sentence() -> None:
    assert apprise_address("https://example.com/a?b=c") == "jsons://example.com/a?-b=c&:message=text"
    slack = "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
    assert apprise_address(slack) == slack
    with pytest.raises(ConfigurationError, match="DISTILFLOW_NOTIFY_URL is neither a web address nor") as refusal:
        apprise_address("nonsense-with-a-secret")
    assert "secret" not in str(refusal.value)
