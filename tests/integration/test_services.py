"""The embedded services: real SeaweedFS, real Prefect servers, real kills."""

import fcntl
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from infra import settings
from infra.errors import ConfigurationError
from infra.services import background, embedded, seaweedfs
from infra.services.embedded import embedded_services
from infra.services.server import free_ports
from infra.services.start import environment, kept
from infra.store import storage
from infra.store.birth import place
from infra.store.claims import RUNS, claim_of_run
from tests.support.processes import of_home
from tests.support.wait import wait_for

ROOT = Path(embedded.__file__).parents[2]
S3 = ("seaweedfs",)
BOTH = ("prefect", "seaweedfs")


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """Services come and go within these tests: what they leave in the environment is for no other file."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "PREFECT_API_URL", "DISTILFLOW_BUCKET"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def s3_home(tmp_path: Path, unconfigured: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh home, with a Prefect server that the environment names, so that only SeaweedFS is started."""
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    yield tmp_path
    assert of_home(tmp_path) == []


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all tests that need Prefect: its first start migrates a database."""
    return tmp_path_factory.mktemp("both")


@pytest.fixture
def both_home(migrated: Path, unconfigured: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DISTILFLOW_HOME", str(migrated))
    yield migrated
    background.down(now=True)
    assert of_home(migrated) == []


def start_python(code: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)


def run_python(code: str) -> str:
    with start_python(code) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return output


def test_keys_of_another_cloud_in_the_environment_open_nothing_here(
    s3_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAELSEWHERE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-elsewhere")
    with embedded_services() as running:
        own = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        assert own != ("AKIAELSEWHERE", "secret-of-elsewhere")
        storage.ensure_bucket()
        foreign = boto3.session.Session("AKIAELSEWHERE", "secret-of-elsewhere")
        client = foreign.client("s3", endpoint_url=running.s3_endpoint, region_name="us-east-1")
        with pytest.raises(ClientError):
            client.list_buckets()
    assert os.environ["AWS_ACCESS_KEY_ID"] == "AKIAELSEWHERE"


def test_what_was_put_is_there_after_a_restart(s3_home: Path) -> None:
    sent = {f"s3://distilflow/{n}": os.urandom(1000 * n) for n in range(1, 40)}
    before = dict(os.environ)
    with embedded_services() as running:
        assert running.started == S3
        assert os.environ["AWS_ENDPOINT_URL_S3"] == running.s3_endpoint
        storage.ensure_bucket()
        for uri, data in sent.items():
            storage.put(uri, data)
    assert dict(os.environ) == before
    assert of_home(s3_home) == []
    assert not list(Path("/tmp").glob(f"seaweedfs-*{running.s3_endpoint.rpartition(':')[2]}.sock"))

    with embedded_services():
        assert {uri: storage.get(uri) for uri in sent} == sent


def test_the_secret_is_kept_for_the_user_alone(s3_home: Path) -> None:
    folder = s3_home / "seaweedfs"
    folder.mkdir()
    config, _, secret = seaweedfs.make_credentials(folder)
    assert config.stat().st_mode & 0o777 == 0o600
    assert seaweedfs.make_credentials(folder)[2] == secret
    assert len(secret) >= 32


def test_a_second_run_in_the_same_home_is_refused(s3_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with embedded_services() as running:
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3")  # another process would not have it
        with (
            pytest.raises(ConfigurationError, match=rf"another run \(pid {os.getpid()}\) holds .*make up"),
            embedded_services(),
        ):
            pass
        with pytest.raises(ConfigurationError, match="another run"):
            background.up()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.s3_endpoint)
        storage.ensure_bucket()  # the first one is unharmed


@pytest.mark.parametrize(
    "state",
    [
        pytest.param('{"seaweedfs": {"pid": 1', id="half written"),
        pytest.param(
            json.dumps({"seaweedfs": {"pid": os.getpid(), "command": ["weed"], "ports": []}}), id="pid reused"
        ),
    ],
)
def test_state_of_a_crashed_machine_is_ignored(s3_home: Path, state: str) -> None:
    (s3_home / "services.json").write_text(state)
    (s3_home / "services.lock").write_text(f'{os.getpid()}\n{{"pid": {os.getpid()}, "command": ["weed"]}}\n{{"pi')
    assert background.status() is None
    with embedded_services() as running:
        assert running.started == S3


def test_ports_that_are_lost_at_the_start_are_replaced(s3_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = free_ports(8)
    choices = iter([lost, free_ports(8)])
    monkeypatch.setattr(seaweedfs, "ports", lambda _home: next(choices))
    with socket.create_server(("127.0.0.1", lost[0])), embedded_services() as running:
        assert running.s3_endpoint != f"http://127.0.0.1:{lost[0]}"
        storage.ensure_bucket()


def test_another_home_on_the_same_port_is_served_with_its_own_keys(
    s3_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = free_ports(8)
    monkeypatch.setattr(seaweedfs, "ports", lambda _home: ports)
    for home in (s3_home / "one", s3_home / "other"):
        monkeypatch.setenv("DISTILFLOW_HOME", str(home))
        with embedded_services() as running:
            assert running.s3_endpoint == f"http://127.0.0.1:{ports[0]}"
            storage.ensure_bucket()


def test_missing_seaweedfs_says_what_to_do(s3_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigurationError, match="not installed: run `make setup`"), embedded_services():
        pass


def test_a_full_disk_is_told_before_anything_starts(s3_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILFLOW_MIN_FREE_MIB", str(1 << 40))
    with pytest.raises(ConfigurationError, match="is full"), embedded_services():
        pass


def test_services_named_in_the_environment_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example")
    monkeypatch.setenv("PREFECT_API_URL", "https://api.prefect.cloud/api/accounts/A/workspaces/W")
    with embedded_services() as running:
        assert running == embedded.Services(
            s3_endpoint="https://s3.example",
            prefect_api_url="https://api.prefect.cloud/api/accounts/A/workspaces/W",
            prefect_ui_url="https://app.prefect.cloud/account/A/workspace/W",
            started=(),
        )
    assert list(tmp_path.iterdir()) == []


def test_nothing_outlives_a_sigkilled_run_and_the_next_one_starts(both_home: Path) -> None:
    holder = start_python(
        "import time\n"
        "from infra.store import storage\n"
        "from infra.services.embedded import embedded_services\n"
        "with embedded_services() as running:\n"
        "    storage.ensure_bucket()\n"
        "    storage.put('s3://distilflow/last', b'words')\n"
        "    print(*running.started, flush=True)\n"
        "    time.sleep(600)\n"
    )
    assert holder.stdout is not None
    assert tuple(holder.stdout.readline().split()) == BOTH
    assert len(of_home(both_home)) >= 5  # the run, and a guardian and a server for each service
    holder.send_signal(signal.SIGKILL)
    holder.communicate()

    with embedded_services() as running:  # at once: it waits for the rest of the killed run by itself
        assert running.started == BOTH
        assert storage.get("s3://distilflow/last") == b"words"


def test_all_of_a_killed_run_is_gone_within_15_s(s3_home: Path) -> None:
    holder = start_python(
        "import time\n"
        "from infra.services.embedded import embedded_services\n"
        "with embedded_services():\n"
        "    print('up', flush=True)\n"
        "    time.sleep(600)\n"
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "up\n"
    holder.kill()
    holder.communicate()
    wait_for(lambda: of_home(s3_home) == [], 15)


def test_the_last_log_lines_of_a_run_reach_the_server(both_home: Path) -> None:
    run_python(
        "from infra.services.embedded import embedded_services\n"
        "with embedded_services():\n"
        "    from prefect import flow, get_run_logger\n"
        "    @flow\n"
        "    def speak(): get_run_logger().info('famous last words')\n"
        "    speak()\n"
    )
    with sqlite3.connect(both_home / "prefect" / "prefect.db") as database:
        assert database.execute("select count(*) from log where message = 'famous last words'").fetchone() == (1,)
        assert ("COMPLETED",) in database.execute("select state_type from flow_run").fetchall()


def _run_under_way(name: str) -> str:
    """The id of a run of a process of its own, which Prefect shows as running."""
    return run_python(
        "from infra.services.embedded import embedded_services\n"
        "with embedded_services():\n"
        "    from prefect import flow\n"
        "    from prefect.client.orchestration import get_client\n"
        "    from prefect.states import Running\n"
        "    @flow\n"
        "    def work(): ...\n"
        "    with get_client(sync_client=True) as client:\n"
        f"        print(client.create_flow_run(work, name={name!r}, state=Running()).id)\n"
    ).splitlines()[-1]


def test_up_serves_all_runs_until_down(
    both_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)
    said = run_python(f"from infra.services import background; background.up({port})")
    assert f"Prefect UI:  http://127.0.0.1:{port}\n" in said
    assert secret_of(both_home) not in said
    addresses = {s.laddr.ip for p in of_home(both_home) for s in p.net_connections("tcp") if s.status == "LISTEN"}
    assert addresses == {"127.0.0.1"}

    with embedded_services() as first:
        assert first.started == ()
        assert first.s3_endpoint in said
        storage.ensure_bucket()
        with pytest.MonkeyPatch.context() as elsewhere:  # as in another process; undone before its services are
            elsewhere.delenv("AWS_ENDPOINT_URL_S3")
            elsewhere.delenv("PREFECT_API_URL")
            with embedded_services() as second:
                assert second == first
    assert background.up().started == ()
    again = capsys.readouterr().out
    assert again.splitlines() == [line for line in said.splitlines() if not line.startswith("Password:")]
    with pytest.raises(ConfigurationError, match=rf"up on port {port}: run `make down`"):
        background.up(port + 1)

    _run_under_way("only")
    killed = _run_under_way("killed")
    dead = {"place": place(), "pid": 2**22 + 1, "started": 1.0, "id": "x"}
    with environment({name: server for name, (_, server) in kept(both_home).items()}):
        storage.put(f"s3://{settings.bucket()}/{RUNS}{claim_of_run(killed)}", json.dumps(dead).encode())
    with pytest.raises(ConfigurationError, match=r"^only is under way: .*`distilflow down --now`") as told:
        background.down()
    assert "\n" not in str(told.value)
    with (both_home / "worker-cpu.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        print(4711, file=lock, flush=True)
        with pytest.raises(ConfigurationError, match=r"^only is under way, and worker cpu \(pid 4711\) runs: "):
            background.down()
        with sqlite3.connect(both_home / "prefect" / "prefect.db") as database:
            database.execute("update flow_run set state_type = 'COMPLETED' where name = 'only'")
        with pytest.raises(ConfigurationError, match=r"^worker cpu \(pid 4711\) runs: "):
            background.down()
    background.down()
    assert of_home(both_home) == []
    assert not (both_home / "services.json").exists()
    background.down()
    assert capsys.readouterr().out == "stopped prefect and seaweedfs\nno services are running\n"


def test_a_taken_port_is_refused_in_one_sentence(both_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"^port {port} is taken: .*; choose another$"):
            background.up(port)
    with pytest.raises(ConfigurationError, match="between 1024 and 65535"):
        background.up(80)


def secret_of(home: Path) -> str:
    return json.loads((home / "seaweedfs" / "s3.json").read_text())["identities"][0]["credentials"][0]["secretKey"]
