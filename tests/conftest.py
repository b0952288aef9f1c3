"""Real servers for the tests that need them, in a home of their own; marks, order and time limits by folder."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from infra.services.embedded import Services, embedded_services
from tests.support.prefect_database import give, migrated_database

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
if "PYTEST_XDIST_WORKER" in os.environ:  # side by side, more threads than cores only get in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of processes start here: none compiles our code anew
for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
    os.environ.pop(name, None)  # tests never touch a developer's own servers

LIMITS_S = {"unit": 60, "integration": 300, "flows": 600}  # for a test with its fixtures, beside a busy neighbour
# Files that take longest begin, of those that run side by side.
LONGEST = (
    *("test_production", "test_training", "test_distill", "test_benchmarks", "test_training_nodes", "test_limits"),
    *("test_worker", "test_logits", "test_providers", "test_harness", "test_services", "test_bootstrap"),
    *("test_report_in_browser", "test_report_page", "test_hostile_seeds"),
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What thousands of tests import is made without passes of the collector, and is none of its business later."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A folder is a mark, and has a limit; those that take longest come first, for files that run side by side."""
    for item in items:
        folder = _folder(config, item)
        item.add_marker(folder)
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LIMITS_S[folder]))
    rank = {stem: place for place, stem in enumerate(LONGEST)}
    items.sort(key=lambda item: (_folder(config, item) == "unit", rank.get(item.path.stem, len(rank))))


def _folder(config: pytest.Config, item: pytest.Item) -> str:
    return item.path.relative_to(config.rootpath / "tests").parts[0]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A DISTILFLOW_HOME for the session."""
    folder = tmp_path_factory.mktemp("home")
    os.environ["DISTILFLOW_HOME"] = str(folder)
    yield folder
    del os.environ["DISTILFLOW_HOME"]


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated Prefect database, the same for all that run side by side."""
    own = tmp_path_factory.getbasetemp()
    return migrated_database(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture(scope="session")
def services(home: Path, database: Path) -> Iterator[Services]:
    """A real SeaweedFS and a real Prefect server, with the variables that point at them."""
    give(home, database)
    with embedded_services() as running:
        yield running


@pytest.fixture
def prefect(services: Services) -> Iterator[None]:
    """Prefect's client in this process talks to the session's server, whatever a test before had set."""
    from infra.orchestration.prefect_client import talking_to

    with talking_to():
        yield


@pytest.fixture
def bucket(services: Services, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own."""
    from infra.store import storage

    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:50].strip("-") + "-t"
    monkeypatch.setenv("DISTILFLOW_BUCKET", name)
    storage.ensure_bucket()
    return name
