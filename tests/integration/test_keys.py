"""A provider's key stays in the environment: no file, artifact, database, log line or message ever holds it."""

import json
import os
import secrets
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import settings
from infra.errors import ConfigurationError
from infra.store import storage
from tests.support import augmentation
from tests.support.endpoint import endpoint, tell
from tests.support.program import ROOT

SHAPELESS = "of0no0known0shape"  # keys that look like keys are hidden by their looks too
PROGRAM = """
    import sys
    import traceback

    from prefect import flow

    from infra.orchestration.run import Stages
    from tasks.augment.settings import Augmentation
    from tasks.augment.stage import Augment
    from tests.support.augmentation import MODEL, load_seeds

    @flow
    def with_a_key(url: str, temperature: float) -> None:
        processes = int(sys.argv[3])
        told = {"processes": processes, "temperature": temperature + processes}
        options = Augmentation(api_base=url, expansions_per_seed=1, min_score=0, **told)
        Stages().run(Augment(seeds=load_seeds(8), agent_model=MODEL, options=options))

    with_a_key(sys.argv[1], 0.5)
    try:
        with_a_key(sys.argv[2], 0.6)  # nothing of it is in the cache
    except Exception:
        traceback.print_exc()
"""


def _run(*words: str, **environment: str) -> str:
    """What flows with the augment task print, with everything logged: one that is served, and one that is not."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *words],
        cwd=ROOT,
        env={**os.environ, **environment, "PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def _files(home: Path) -> Iterator[tuple[Path, bytes]]:
    """Logs, Prefect's database, the answer cache, SeaweedFS's volumes, the credentials of its own."""
    for path in sorted(home.rglob("*")):
        if path.is_file():
            yield path.relative_to(home), path.read_bytes()


def _objects() -> Iterator[tuple[str, str]]:
    """Everything in the bucket, Parquet as the values that it holds."""
    bucket = f"s3://{settings.bucket()}/"
    for name in storage.keys(bucket):
        data = storage.get(bucket + name) or b""
        if name.endswith(".parquet"):
            yield name, json.dumps(pq.read_table(pa.BufferReader(data)).to_pylist(), ensure_ascii=False)
        else:
            yield name, data.decode()


@pytest.mark.parametrize("processes", ["0", "1"])
def test_a_key_in_the_environment_is_used_and_never_written(processes: str, bucket: str, home: Path) -> None:
    key = SHAPELESS + secrets.token_hex(12)
    serving_most = endpoint(require_key=key, faults=0.1, kinds=["declined"])  # with a message that quotes the key
    with serving_most as serving, endpoint(require_key="another") as refusing:
        printed = _run(serving, refusing, processes, OPENAI_API_KEY=key)
        assert tell(serving, "stats")["requests"] > 0
        assert tell(refusing, "stats")["requests"] == 0
    assert "refused the key" in printed
    assert key not in printed

    files, objects = dict(_files(home)), dict(_objects())
    assert [path for path, data in files.items() if key.encode() in data] == []
    assert [name for name, text in objects.items() if key in text] == []
    _would_be_found(files, objects)
    assert processes == "0" or any(path.match("logs/provider.log") for path in files)


def _would_be_found(files: dict[Path, bytes], objects: dict[str, str]) -> None:
    """What did go through is found in the same places by the same search."""
    answer, refusal = b"Because of", b"refused the key"
    assert any(answer in data for path, data in files.items() if path.name.startswith("llm_answers.sqlite"))
    assert any(refusal in data for path, data in files.items() if path.name.startswith("prefect.db"))
    assert any(answer.decode() in text for name, text in objects.items() if name.startswith("answers/"))
    assert any(answer.decode() in text for name, text in objects.items() if "/kept/" in name)
    assert any("Declined for [key]" in text for name, text in objects.items() if "/failed/" in name)
    assert any("openai/test" in text for name, text in objects.items() if name.endswith("record.json"))


def test_a_key_given_with_the_address_is_used_and_never_written(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path))
    key = SHAPELESS + secrets.token_hex(12)
    with endpoint(require_key=key) as url:
        augmentation.augment(url, 4, {"expansions_per_seed": 1}, key)
    with endpoint(require_key="another") as url, pytest.raises(ConfigurationError, match="refused the key") as caught:
        augmentation.augment(url, 4, {"expansions_per_seed": 1, "temperature": 0.1}, key)
    assert key not in "".join(traceback.format_exception(caught.value))
    assert [path for path, data in _files(tmp_path) if key.encode() in data] == []
    assert [name for name, text in _objects() if key in text] == []
