"""A user's mistake: one clear sentence, an exit code, nothing spent."""

import json
import os
import re
import socket
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import FlowRunSort

from flows.commands.main import main
from infra.orchestration.prefect_client import talking_to
from tests.support import cli
from tests.support.wait import wait_for

pytestmark = pytest.mark.usefixtures("services")


def _sentence(*words: str, **environment: str) -> str:
    done = cli.run(*words, **environment)
    assert done.returncode not in (0, 1), done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.startswith("distilflow: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_malformed_row_is_named_with_file_row_and_field(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text(json.dumps({"instruction": "x", "output": "y"}) + "\n" + json.dumps({"instruction": 3}) + "\n")
    message = _sentence("run", f"--seeds={seeds}")
    assert f"{seeds}, row 2, field 'instruction': expected text, found int" in message


def test_all_that_is_wrong_is_named_and_the_runs_log_has_it_once() -> None:
    flags = ["--student=0.7B", "--teacher=72B", "--seeds=nowhere.jsonl", "--databases=nowhere"]
    message = _sentence("run", *flags, HF_HUB_OFFLINE="1", DISTILFLOW_MIN_FREE_MIB="99999999999")
    for wrong in (
        "unknown student '0.7B'",
        "teacher '72B'",
        "no file 'nowhere.jsonl'",
        "nowhere holds no *.sql",
        "is full",
    ):
        assert message.count(wrong) == 1, wrong
    assert message.startswith("distilflow: 5 problems: (1) ")
    assert "0.5B" in message, "which students there are"
    with talking_to(), get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
        ours = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
        wait_for(lambda: [log for log in client.read_logs(ours) if log.message.startswith("Finished in state")])
        logs = [log.message for log in client.read_logs(ours)]
    assert not [log for log in logs if "Traceback" in log]
    sentence = message.removeprefix("distilflow: ").strip()
    assert [log for log in logs if "0.7B" in log and "nowhere" in log] == [sentence]


def test_wrong_s3_credentials() -> None:
    message = _sentence("run", AWS_SECRET_ACCESS_KEY="wrong")
    assert "refused the credentials" in message
    assert "AWS_SECRET_ACCESS_KEY" in message


def test_an_unreachable_llm() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    flags = ["--agent-model=openai/x", f"--augmentation.api-base={address}"]
    told = _sentence("run", *flags, OPENAI_API_KEY="sk-x", DISTILFLOW_RETRY_DELAYS_S="0.1")
    assert f"the LLM at {address} cannot be reached" in told


def test_a_missing_provider_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "needs its provider's key: set OPENAI_API_KEY" in _sentence("run", "--agent-model=openai/gpt-4o")


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = _sentence("up", f"--port={port}", DISTILFLOW_HOME=str(tmp_path))
    assert f"port {port} is taken" in message


@pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")
@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--k=0", "k"),
        ("--k=ten", "ten"),
        ("--kd.tail=tale", "tale"),
        ("--seed=-1", "seed"),
        ("--k=0 --seed=-1 --kd.epochs=0 --kd.temperature 0", "--k: .*--kd.epochs: .*--kd.temperature: .*--seed: "),
    ],
)
def test_a_wrong_flag(
    flag: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `distilflow` calls, called here: four processes would say no more."""
    monkeypatch.setattr(sys, "argv", ["distilflow", "run", *flag.split()])
    with patch.dict(os.environ), pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err.startswith("distilflow: ")
    assert said.err.count("\n") == 1
    assert re.search(words, said.err)
    assert said.out == ""


def test_a_wrong_flag_of_a_process() -> None:
    assert "--colour" in _sentence("run", "--colour=red")
