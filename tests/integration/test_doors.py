"""Nobody without a key gets in: neither a program of this machine nor a page of another origin in its browser."""

from __future__ import annotations

import functools
import http.server
import json
import os
import stat
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra import settings
from infra.services import prefect_server
from infra.services.embedded import Services
from infra.store import storage
from tests.support.browser import logged_in, page
from tests.support.processes import of_home

SECRET = b"a row of somebody's private data"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Another site that the user has open."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "index.html").write_text("<html>another site</html>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def _status(url: str, data: bytes | None = None, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_prefect_answers_who_knows_its_password(services: Services, home: Path) -> None:
    asked = f"{services.prefect_api_url}/flow_runs/count"
    assert _status(asked, b"{}", **{"content-type": "application/json"}) == 401
    assert _status(f"{services.prefect_api_url}/health") == 200
    file = prefect_server.password_file(home)
    assert services.password_file == file
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    words = [word for process in of_home(home) for word in process.cmdline()]
    assert not [word for word in words if file.read_text() in word]


def test_other_users_of_the_machine_read_nothing_of_the_servers(services: Services, home: Path) -> None:
    for name in services.started:
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o700, name


def test_a_home_is_made_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / "home"))
    assert stat.S_IMODE(settings.made_home().stat().st_mode) == 0o700


def test_a_page_of_another_site_gets_nothing_from_prefect(services: Services, elsewhere: str) -> None:
    """What it was: such a page read the run history, and made a run of a shell command."""
    with page() as site:
        site.goto(elsewhere)
        fetch = "async ([url, how]) => { try { return (await fetch(url, how)).status } catch (e) { return `${e}` } }"
        read = site.evaluate(fetch, [f"{services.prefect_api_url}/admin/version", {}])
        assert "Failed to fetch" in str(read), "another origin reads answers"
        body = json.dumps({"name": "evil"})
        blind = {"method": "POST", "mode": "no-cors", "body": body, "headers": {"content-type": "text/plain"}}
        site.evaluate(fetch, [f"{services.prefect_api_url}/flows/", blind])
    named = json.dumps({"flows": {"name": {"any_": ["evil"]}}}).encode()
    assert _ask(services, "/flows/filter", named) == []


def _ask(services: Services, path: str, data: bytes) -> Any:
    from base64 import b64encode

    assert services.password_file is not None
    login = b64encode(services.password_file.read_bytes()).decode()
    headers = {"authorization": f"Basic {login}", "content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(services.prefect_api_url + path, data, headers)) as answer:
        return json.load(answer)


def test_the_ui_works_with_the_password(services: Services, home: Path) -> None:
    with page() as ui:
        ui.goto(f"{services.prefect_ui_url}/dashboard")
        ui.locator("input").first.wait_for()
        assert "/login" in ui.url or ui.locator("input[type=password]").count()
    with page() as ui:
        logged_in(ui, prefect_server.password(home))
        ui.goto(f"{services.prefect_ui_url}/dashboard")
        ui.get_by_text("Event Feed").first.wait_for()


def test_stored_files_come_by_s3_and_a_signature_alone(services: Services, home: Path, bucket: str) -> None:
    storage.put(f"s3://{bucket}/private.txt", SECRET)
    found = [p for p in of_home(home) if p.name() == "weed"]
    listening = sorted(
        {c.laddr.port for p in found for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    )
    assert len(listening) >= 6
    for port in listening:
        for path in (f"/buckets/{bucket}/private.txt", f"/{bucket}/private.txt"):
            assert SECRET not in _body(f"http://127.0.0.1:{port}{path}"), port
        for path in (f"/buckets/{bucket}/planted.txt", f"/{bucket}/planted.txt"):
            _body(f"http://127.0.0.1:{port}{path}", b"planted")
            _body(f"http://127.0.0.1:{port}/buckets/{bucket}/private.txt", method="DELETE")
    assert storage.get(f"s3://{bucket}/private.txt") == SECRET
    assert storage.get(f"s3://{bucket}/planted.txt") is None
    toml = home / "seaweedfs" / ".seaweedfs" / "security.toml"
    assert stat.S_IMODE(toml.stat().st_mode) == 0o600
    assert not any(key in os.environ.values() for key in toml.read_text().split('"')[1::2])


def _body(url: str, data: bytes | None = None, method: str | None = None) -> bytes:
    try:
        request = urllib.request.Request(url, data, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())
    except (urllib.error.URLError, OSError, ValueError) as error:
        return repr(error).encode()
