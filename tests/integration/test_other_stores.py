"""Stores of other makers: a way to go on where there is one, else the sentence that says what is wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows import preflight
from flows.recipe import Recipe
from infra.errors import ConfigurationError, DistilflowError, TransientError
from infra.orchestration import view
from infra.store import storage
from infra.store.artifacts import ArtifactReader, Workspace
from infra.store.claims import Claims
from tests.support.quirky_s3 import BUCKET, Quirks, quirky_s3


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Quirks]:
    quirks = Quirks()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "DISTILFLOW_S3_ADDRESSING"):
        monkeypatch.delenv(name, raising=False)
    with quirky_s3(quirks) as url:
        told = {"AWS_ENDPOINT_URL_S3": url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        for name, value in {**told, "DISTILFLOW_BUCKET": BUCKET, "AWS_MAX_ATTEMPTS": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(storage, "_SETTLED_S", 0.3)
        yield quirks


@pytest.mark.parametrize("conditions", ["kept", "refused", "ignored"])
def test_of_many_writers_at_one_moment_one_has_the_claim(conditions: str, store: Quirks) -> None:
    store.conditions = conditions
    assert storage.keeps_conditions() == (conditions == "kept")
    assert not [key for key in store.objects if key.startswith("probe/")]
    start, took = threading.Barrier(6), list[int]()

    def work(number: int) -> None:
        with Claims(f"s3://{BUCKET}/claims/") as claims:
            start.wait()
            if claims.take("piece"):
                took.append(number)
            start.wait()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(took) == 1
    with Claims(f"s3://{BUCKET}/claims/") as claims:
        assert claims.take("piece")  # which was given back


@pytest.mark.parametrize("conditions", ["kept", "refused", "ignored"])
def test_a_run_says_at_its_start_that_conditions_are_not_kept(
    conditions: str, store: Quirks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store.conditions = conditions
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("DISTILFLOW_CONSOLE", "1")
    with view.console.capture() as said:
        preflight.check.fn(Recipe.of({}))
    assert ("the store keeps no conditions on writes" in said.get()) == (conditions != "kept")


@pytest.mark.parametrize("conditions", ["kept", "refused", "ignored"])
def test_a_changed_object_is_not_overwritten(conditions: str, store: Quirks) -> None:
    store.conditions = conditions
    uri = f"s3://{BUCKET}/x"
    assert storage.put(uri, b"1", only_if_absent=True)
    assert not storage.put(uri, b"2", only_if_absent=True)
    found = storage.get_with_etag(uri)
    assert found is not None
    assert storage.put(uri, b"3", only_if_match=found[1])
    assert not storage.put(uri, b"4", only_if_match=found[1])
    assert storage.get(uri) == b"3"


def test_without_metadata_an_artifact_has_its_digests_all_the_same(store: Quirks) -> None:
    store.keeps_metadata = False
    work = Workspace("thing", 1, {"a": 1}, {})
    work.put("files/one", b"content")
    ref = work.publish(("files/",), {}, {})
    assert ArtifactReader(ref).read("files/one") == b"content"


def test_a_store_that_deletes_one_at_a_time(store: Quirks) -> None:
    store.deletes_many = False
    for name in "abc":
        storage.put(f"s3://{BUCKET}/old/{name}", b"")
    assert storage.delete_all(f"s3://{BUCKET}/old/", ["a", "c"]) == 2
    assert list(storage.keys(f"s3://{BUCKET}/old/")) == ["b"]


def test_a_bucket_is_created_in_the_region_that_is_asked_for(store: Quirks, monkeypatch: pytest.MonkeyPatch) -> None:
    store.buckets.clear()
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    storage._client.cache_clear()
    storage.ensure_bucket()
    storage.ensure_bucket()
    assert len(store.made) == 1
    assert b"<LocationConstraint>eu-central-1</LocationConstraint>" in store.made[0]
    assert "/eu-central-1/s3/" in store.asked[0][3]["authorization"]


def test_no_request_has_checksums_that_other_stores_stumble_over(
    store: Quirks, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put(f"s3://{BUCKET}/x", b"1")
    assert not [name for name in store.asked[-1][3] if "checksum" in name or name == "x-amz-trailer"]
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    storage._client.cache_clear()
    storage.put(f"s3://{BUCKET}/x", b"1")
    assert [name for name in store.asked[-1][3] if "checksum" in name]
    storage._client.cache_clear()


def test_buckets_are_hosts_where_that_is_asked_for(store: Quirks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILFLOW_S3_ADDRESSING", "virtual")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.example.com")
    address = storage.client().generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "k"})
    assert address.startswith(f"http://{BUCKET}.s3.example.com/k?")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "AccessDenied", "does not let these credentials do ListObjectsV2 in the bucket 'shop'"),
        (403, "InvalidAccessKeyId", "refused the credentials"),
        (403, "SignatureDoesNotMatch", "refused the credentials"),
        (400, "ExpiredToken", "refused the session token .*get a new AWS_SESSION_TOKEN"),
        (400, "InvalidToken", "refused the session token"),
        (403, "RequestTimeTooSkewed", "the clock of this machine .*set the clock"),
        (403, "QuotaExceeded", "is full, or its quota is"),
        (507, "InsufficientStorage", "is full"),
        (301, "PermanentRedirect", "in another region .*set AWS_DEFAULT_REGION=eu-west-1"),
        (400, "AuthorizationHeaderMalformed", "set AWS_DEFAULT_REGION=eu-west-1"),
    ],
)
def test_what_no_retry_mends_is_told_once_in_the_right_words(status: int, code: str, words: str, store: Quirks) -> None:
    store.refuses = (status, code, "<Region>eu-west-1</Region>")
    with pytest.raises(ConfigurationError, match=words):
        storage.ensure_bucket()
    assert len(store.asked) <= 2


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown")])
def test_what_passes_is_tried_again(status: int, code: str, store: Quirks) -> None:
    store.refuses = (status, code, "")
    with pytest.raises(TransientError, match=rf"answered {code}( in each of \d tries)?: run again"):
        storage.ensure_bucket()


class _Site(BaseHTTPRequestHandler):
    """Something that is no store: a page for everything, or a redirect to itself."""

    redirects = False

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(307 if self.redirects else 200)
        if self.redirects:
            self.send_header("Location", f"http://{self.headers['host']}{self.path}")
        page = b"" if self.redirects or self.command == "HEAD" else self.page
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    page = b""
    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("redirects", "page", "words"),
    [
        (True, b"", "sends every request on to another address, without end"),
        (False, b"<html><body>Welcome</body></html>", "does not answer as S3 does"),
        (False, b"", "does not answer as S3 does"),
    ],
)
def test_what_is_no_store_is_told_at_once(
    redirects: bool, page: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = type("Handler", (_Site,), {"redirects": redirects, "page": page})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for name, value in {"ENDPOINT_URL_S3": address, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        with pytest.raises(ConfigurationError, match=f"what is at {address} {words}: check AWS_ENDPOINT_URL_S3"):
            storage.ensure_bucket()
        server.shutdown()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"AWS_PROFILE": "nobody"}, "nobody.* could not be found.*check AWS_PROFILE"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "half of the credentials .*set both"),
        ({"AWS_ENDPOINT_URL_S3": "no address"}, "S3: .*no address.*check AWS_ENDPOINT_URL_S3"),
        ({"DISTILFLOW_S3_ADDRESSING": "sideways"}, "sideways.*set DISTILFLOW_S3_ADDRESSING to path or virtual"),
        ({"DISTILFLOW_BUCKET": "No Bucket!"}, "takes no such name .*check DISTILFLOW_BUCKET"),
    ],
)
def test_what_never_leaves_the_machine_is_told_too(
    environment: dict[str, str | None], words: str, store: Quirks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(DistilflowError, match=words) as told:
        storage.ensure_bucket()
    assert isinstance(told.value, ConfigurationError)
    assert store.asked == []
