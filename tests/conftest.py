"""Real servers for the tests that need them, in a home of their own."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from infra.services import Services, embedded_services

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "PREFECT_API_URL"):
    os.environ.pop(name, None)  # tests never touch a developer's own servers


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A DISTILFLOW_HOME for the session."""
    folder = tmp_path_factory.mktemp("home")
    os.environ["DISTILFLOW_HOME"] = str(folder)
    yield folder
    del os.environ["DISTILFLOW_HOME"]


@pytest.fixture(scope="session")
def services(home: Path) -> Iterator[Services]:
    """A real SeaweedFS and a real Prefect server, with the variables that point at them."""
    with embedded_services() as running:
        yield running


@pytest.fixture
def bucket(services: Services, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own."""
    from infra import storage

    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:50].strip("-") + "-t"
    monkeypatch.setenv("DISTILFLOW_BUCKET", name)
    storage.ensure_bucket()
    return name
