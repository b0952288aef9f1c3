"""`distilflow gc` as a person calls it, and the flow as Prefect does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.commands.gc import KINDS, ROOTS
from infra.store import storage
from infra.store.artifacts import Workspace
from tests.support import cli
from tests.support.wait import wait_for

pytestmark = pytest.mark.usefixtures("services")


@pytest.fixture
def lost(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace that nobody finished; and no local copies of other tests' artifacts."""
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path))
    work = Workspace("kd", 1, {}, {})
    work.put("checkpoint/latest.json", b"{}")
    return work


def test_without_delete_it_lists_and_with_delete_it_deletes(lost: Workspace, bucket: str) -> None:
    env = {"DISTILFLOW_BUCKET": bucket, "COLUMNS": "200"}
    done = cli.run("gc", **env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nothing to delete." in done.stdout  # it is within the grace age

    wait_for(lambda: storage.now() > next(storage.listed(lost.uri)).modified + 1)
    done = cli.run("gc", "--grace-days=0", **env)
    assert (done.returncode, done.stderr) == (0, "")
    assert lost.uri in done.stdout
    assert "never finished; untouched for 0.0 days" in done.stdout
    assert "Nothing was deleted: `--delete` frees 2 bytes." in done.stdout
    assert lost.has("checkpoint/latest.json")

    done = cli.run("gc", "--grace-days=0", "--delete", **env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Deleted 1 objects, 2 bytes." in done.stdout
    assert list(storage.keys(lost.uri)) == []


def test_a_wrong_address_to_keep_is_told_and_nothing_happens(lost: Workspace, bucket: str) -> None:
    done = cli.run("gc", "--grace-days=0", "--delete", f"--keep={lost.uri}", DISTILFLOW_BUCKET=bucket)
    assert done.returncode == 78
    assert done.stderr == f"distilflow: --keep: there is no finished artifact at {lost.uri}\n"
    assert lost.has("checkpoint/latest.json")


def test_the_flow_publishes_what_it_found_and_deletes_only_when_told(lost: Workspace, bucket: str) -> None:
    code = """
import json
from flows.gc import gc
from prefect.client.orchestration import get_client

first = gc(grace_days=0)
second = gc(grace_days=0, dry_run=False)
with get_client(sync_client=True) as client:
    tables = {a.key: a.data for a in client.read_artifacts(limit=200) if a.key and a.key.startswith("gc-")}
print(json.dumps([first.model_dump(), second.model_dump(), sorted(tables), str(tables)]))
"""
    wait_for(lambda: storage.now() > next(storage.listed(lost.uri)).modified + 1)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, tables, text = json.loads(done.stdout.splitlines()[-1])
    nothing = {"deleted_objects": 0, "deleted_bytes": 0, "spared": {}}
    assert first == {"found": 1, "found_bytes": 2, **nothing}
    assert second == {"found": 1, "found_bytes": 2, "deleted_objects": 1, "deleted_bytes": 2, "spared": {}}
    assert tables == ["gc-kinds", "gc-list"]
    assert lost.uri in text
    assert list(storage.keys(lost.uri)) == []


def test_every_kind_that_a_stage_makes_is_known() -> None:
    """A kind that is not named here is never collected, and keeps all that it refers to."""
    import flows.sweep  # noqa: F401 (its stages and those of the pipeline are defined then)
    from infra.stage import kinds

    ours = [stage for stage in kinds().values() if stage.__module__.startswith("tasks.")]
    made = {kind for stage in ours for kind in stage.makes}
    assert len(ours) >= 10
    assert made <= set(KINDS)
    assert set(ROOTS) == {"report", "leaderboard", "experiment"} <= made
