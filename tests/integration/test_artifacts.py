"""Artifacts on a real S3 server: complete or absent, verified on reading, one record of two racing writers."""

import threading
from pathlib import Path

import pytest

from infra.errors import ConfigurationError, TransientError
from infra.store import storage
from infra.store.artifacts import RECORD, ArtifactReader, ArtifactRef, Workspace

pytestmark = pytest.mark.usefixtures("bucket")


def _publish(spec: int = 1) -> ArtifactRef:
    work = Workspace("thing", 1, {"spec": spec}, {})
    work.put("data/a.txt", b"alpha")
    work.put("data/b.txt", b"beta")
    work.put("scratch/c.txt", b"not part of it")
    return work.publish(("data/",), {"files": 2}, {"note": "x"})


def test_an_artifact_without_its_record_is_not_there() -> None:
    work = Workspace("thing", 1, {"spec": 1}, {})
    work.put("data/a.txt", b"alpha")
    assert work.find() is None
    ref = _publish()
    assert work.find() == ref.model_copy(update={"cached": True, "seconds": 0.0})
    assert ArtifactReader(ref).names() == ["data/a.txt", "data/b.txt"]


def test_the_fingerprint_follows_spec_version_and_inputs_content() -> None:
    first, second = _publish(1), _publish(2)
    prints = {
        Workspace("kind", 1, {"k": 1}, {}).fingerprint,
        Workspace("kind", 1, {"k": 2}, {}).fingerprint,
        Workspace("kind", 2, {"k": 1}, {}).fingerprint,
        Workspace("kind", 1, {"k": 1}, {"rows": first}).fingerprint,
    }
    assert len(prints) == 4
    # equal content is equal input, whoever made it
    assert (
        Workspace("kind", 1, {}, {"rows": first}).fingerprint == Workspace("kind", 1, {}, {"rows": second}).fingerprint
    )


def test_an_unstable_spec_is_refused() -> None:
    with pytest.raises(TypeError):
        Workspace("kind", 1, {"path": Path("x")}, {})


def test_changed_bytes_are_found_and_named() -> None:
    ref = _publish()
    storage.put(ref.uri + "data/b.txt", b"BETA")
    reader = ArtifactReader(ref)
    assert reader.read("data/a.txt") == b"alpha"
    with pytest.raises(ConfigurationError, match=r"data/b\.txt is corrupt"):
        reader.read("data/b.txt")
    with pytest.raises(ConfigurationError, match=r"data/b\.txt is corrupt"):
        reader.folder("data/")


def test_a_missing_file_is_named() -> None:
    ref = _publish()
    storage.delete(ref.uri + "data/a.txt")
    with pytest.raises(ConfigurationError, match=r"data/a\.txt is missing"):
        ArtifactReader(ref).read("data/a.txt")


def test_two_racing_writers_end_with_one_record() -> None:
    refs: list[ArtifactRef] = []
    barrier = threading.Barrier(2)

    def write() -> None:
        work = Workspace("race", 1, {}, {})
        work.put("data/x", b"same")
        barrier.wait()
        refs.append(work.publish(("data/",), {}, {}))

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert refs[0] == refs[1]


def test_a_local_copy_is_verified_and_used_again() -> None:
    ref = _publish()
    folder = ArtifactReader(ref).folder("data/")
    (folder / "a.txt").write_text("ALPHA")  # damaged on disk
    assert (ArtifactReader(ref).folder("data/") / "a.txt").read_text() == "alpha"


def test_wrong_credentials_and_no_server_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    storage._client.cache_clear()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ConfigurationError, match="refused the credentials.*AWS_SECRET_ACCESS_KEY"):
        storage.put("s3://whatever/x", b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(TransientError, match="cannot be reached.*AWS_ENDPOINT_URL_S3"):
        storage.get("s3://whatever/x")
    storage._client.cache_clear()


def test_record_tells_where_it_comes_from() -> None:
    ref = _publish()
    record = storage.get(ref.uri + RECORD)
    assert record is not None
    for word in (b'"spec"', b'"versions"', b'"prefect"', b'"started_at"'):
        assert word in record
