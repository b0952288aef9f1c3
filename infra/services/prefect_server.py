"""The embedded Prefect server: API and UI on one port, SQLite under `<home>/prefect/`.

Who can talk to it can run programs here, with the keys of its workers. So it takes a password, which is made at its
first start and lies in `<home>/prefect/password`, and answers pages of its own UI only.

Does not import Prefect: that costs a second, and Prefect reads its settings when it is first imported.
"""

from __future__ import annotations

import base64
import json
import sys
import urllib.error
import urllib.request
import zlib
from pathlib import Path

from infra.processes.environment import for_server
from infra.services.server import Server, free_ports, secret_file

NAME = "prefect"
USUAL_PORT = 4200
_FLUSH_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 10.0


def ports(home: Path) -> list[int]:
    """A free port, the same for a home each time where possible; the usual one is left to the user's own server."""
    return free_ports(1, preferred=28_000 + zlib.crc32(str(home).encode()) % 4_000)


def server(home: Path, ports: list[int]) -> Server:
    """A Prefect server with its database under `home`."""
    folder = home / NAME
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # its database names what webhooks tell, whoever may read the home
    (port,) = ports
    api_url = f"http://127.0.0.1:{port}/api"
    secret = password(home)
    for_both: dict[str, str] = {
        "PREFECT_HOME": str(folder),  # the user's own profile is neither read nor changed
        "PREFECT_API_URL": api_url,
        "PREFECT_API_AUTH_STRING": secret,
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "DO_NOT_TRACK": "1",
    }
    return Server(
        name=NAME,
        url=api_url,
        ports=ports,
        command=[sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env={
            **for_server("PREFECT_*"),
            **for_both,
            "PREFECT_SERVER_API_AUTH_STRING": secret,
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port},http://localhost:{port}",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
            "PREFECT_SERVER_MEMO_STORE_PATH": str(folder / "memo_store.toml"),  # ignores PREFECT_HOME; halves a start
            # who holds GPUs is known after a restart, too; in memory, their slots would be taken for ever
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "5",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "NO_COLOR": "1",
        },
        log=home / "logs" / f"{NAME}.log",
        grace_s=3.0,
        answers=lambda: _is_healthy(f"{api_url}/health"),
        client_env={**for_both},
    )


def password(home: Path) -> str:
    """What the server of this home asks for; made once, readable by the user only."""
    return secret_file(password_file(home))


def password_file(home: Path) -> Path:
    return home / NAME / "password"


def flush_client() -> None:
    """Send what Prefect's client in this process, if there is one, holds back: it batches log lines for seconds."""
    for module, worker in (("prefect.events.worker", "EventsWorker"), ("prefect.logging.handlers", "APILogWorker")):
        if module in sys.modules:
            getattr(sys.modules[module], worker).drain_all(timeout=_FLUSH_TIMEOUT_S, at_exit=False)


def under_way(server: Server) -> dict[str, str]:
    """Runs that it shows as running, or about to, by id: their names. None of a server that does not answer."""
    states = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}, "limit": 200}
    secret = base64.b64encode(str(server.client_env["PREFECT_API_AUTH_STRING"]).encode()).decode()
    headers = {"Authorization": f"Basic {secret}", "Content-Type": "application/json"}
    asked = urllib.request.Request(f"{server.url}/flow_runs/filter", json.dumps(states).encode(), headers)
    try:
        with _directly().open(asked, timeout=_ANSWER_TIMEOUT_S) as answer:
            return {run["id"]: run["name"] for run in json.load(answer)}
    except (urllib.error.URLError, OSError):
        return {}


def ui_url(api_url: str) -> str:
    """The address to open in a browser, as Prefect itself infers it from that of the API."""
    cloud = api_url.replace("https://api.prefect.cloud/api/accounts/", "https://app.prefect.cloud/account/")
    return cloud.replace("/workspaces/", "/workspace/").removesuffix("/api")


def _is_healthy(url: str) -> bool:
    try:
        with _directly().open(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _directly() -> urllib.request.OpenerDirector:
    """No proxy."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
