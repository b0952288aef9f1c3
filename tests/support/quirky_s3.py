"""An S3 store on loopback with the quirks of stores that we did not make. Nothing is signed, all is in memory."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse
from xml.etree import ElementTree
from xml.sax.saxutils import escape

BUCKET = "shop"


@dataclass
class Quirks:
    """What the store does otherwise: `refuses` are (status, S3 code, more XML) of every request."""

    conditions: str = "kept"  # or "refused" with 501, or "ignored"
    deletes_many: bool = True
    keeps_metadata: bool = True
    refuses: tuple[int, str, str] | None = None
    buckets: set[str] = field(default_factory=lambda: {BUCKET})
    objects: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    asked: list[tuple[str, str, str, dict[str, str]]] = field(default_factory=list)  # method, host, path, headers
    made: list[bytes] = field(default_factory=list)  # what buckets were created with
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextlib.contextmanager
def quirky_s3(quirks: Quirks) -> Iterator[str]:
    """The store's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(quirks))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _handler(quirks: Quirks) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlparse(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            quirks.asked.append((self.command, headers["host"], url.path, headers))
            bucket, _, key = unquote(url.path).lstrip("/").partition("/")
            with quirks.lock:
                self._answer(bucket, key, parse_qs(url.query, keep_blank_values=True), headers, body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _any

        def _answer(self, bucket: str, key: str, query: Any, headers: dict[str, str], body: bytes) -> None:
            objects = quirks.objects
            if quirks.refuses:
                self._refuse(*quirks.refuses)
            elif self.command == "PUT" and not key:
                quirks.buckets.add(bucket)
                quirks.made.append(body)
                self._send(200)
            elif bucket not in quirks.buckets:
                self._refuse(404, "NoSuchBucket")
            elif self.command == "POST" and "delete" in query:
                if not quirks.deletes_many:
                    self._refuse(501, "NotImplemented")
                    return
                for found in ElementTree.fromstring(body).iter():
                    if found.tag.endswith("Key"):
                        objects.pop(found.text or "", None)
                self._send(200, b"<DeleteResult/>")
            elif self.command == "PUT":
                self._put(key, headers, body)
            elif self.command == "DELETE":
                objects.pop(key, None)
                self._send(204)
            elif not key:
                prefix = query.get("prefix", [""])[0]
                entries = "".join(
                    f"<Contents><Key>{escape(name)}</Key><Size>{len(objects[name][0])}</Size>"
                    f"<ETag>&quot;x&quot;</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                    for name in sorted(objects)
                    if name.startswith(prefix)
                )
                listing = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
                self._send(200, listing.encode())
            elif key in objects:
                data, metadata = objects[key]
                extra = {"ETag": _etag(data), "Last-Modified": formatdate(usegmt=True), **metadata}
                self._send(200, data, extra)
            else:
                self._refuse(404, "NoSuchKey")

        def _put(self, key: str, headers: dict[str, str], body: bytes) -> None:
            condition = {name: headers[name] for name in ("if-none-match", "if-match") if name in headers}
            found = quirks.objects.get(key)
            if condition and quirks.conditions == "refused":
                self._refuse(501, "NotImplemented")
                return
            if quirks.conditions == "kept" and (
                ("if-none-match" in condition and found is not None)
                or ("if-match" in condition and (found is None or _etag(found[0]) != condition["if-match"]))
            ):
                self._refuse(412, "PreconditionFailed")
                return
            told = {name: value for name, value in headers.items() if name.startswith("x-amz-meta-")}
            quirks.objects[key] = (body, told if quirks.keeps_metadata else {})
            self._send(200, b"", {"ETag": _etag(body)})

        def _refuse(self, status: int, code: str, more: str = "") -> None:
            self._send(status, f"<Error><Code>{code}</Code><Message>no</Message>{more}</Error>".encode())

        def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'
