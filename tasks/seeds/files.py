"""Data files as they lie: found, told apart by their first bytes, and read a few rows at a time.

JSON as a list, JSON lines, and JSON objects over several lines are one thing here: a stream of values, of which one is
in memory at a time. What Parquet unpacks to is in `tasks.seeds.parquet`.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from infra import settings
from infra.errors import ConfigurationError
from infra.files import scratch
from infra.store import storage
from tasks.seeds import parquet

LONGEST_ROW = 2**24  # characters: no model's context holds more
_CHUNK = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")
_OTHER_FORMATS = {
    b"\x1f\x8b": "is packed by gzip: unpack it",
    b"PK\x03\x04": "is a zip archive: unpack it",
    b"(\xb5/\xfd": "is packed by zstd: unpack it",
    b"BZh": "is packed by bzip2: unpack it",
    b"ARROW1": "is an Arrow file: save it as Parquet",
    b"SQLite format 3": "is a SQLite database: save the rows as JSONL in UTF-8",
    b"\xff\xfe": "is neither Parquet nor UTF-8 text but seems to be UTF-16: save it as JSONL in UTF-8",
    b"\xfe\xff": "is neither Parquet nor UTF-8 text but seems to be UTF-16: save it as JSONL in UTF-8",
}


@contextlib.contextmanager
def local(source: str, what: str) -> Iterator[Path]:
    """A file, or a copy of an s3:// object for the length of the `with`; `what` it holds is for the error."""
    if source.startswith("s3://"):
        with scratch(settings.work_dir(), "data") as folder:
            try:
                storage.download(source, path := folder / "file")
            except ConfigurationError as error:
                raise ConfigurationError(f"{what}: {error}") from error
            yield path
        return
    check(source, what)
    yield Path(source).expanduser()


def digest(source: str, what: str) -> str:
    """sha256 of a file or s3:// object. Raises ConfigurationError as `check` does."""
    check(source, what)
    return storage.digest(source) if source.startswith("s3://") else storage.file_digest(Path(source).expanduser())


def check(source: str, what: str) -> None:
    """Raise ConfigurationError where there is no such file or s3:// object, or none that can be read."""
    if source.startswith("s3://"):
        try:
            there = storage.head(source)
        except ConfigurationError as error:
            raise ConfigurationError(f"{what}: {error}") from error
        if there is None:
            raise ConfigurationError(f"{what}: {source} does not exist")
        return
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            files = sorted(str(one.relative_to(path)) for one in islice(path.rglob("*"), 1000) if one.is_file())
            found = f"it holds {', '.join(files[:3])}{' …' * (len(files) > 3)}" if files else "it is empty"
            raise ConfigurationError(f"{what}: {source!r} is a folder ({found}): name one file")
        if not path.is_file():
            raise ConfigurationError(f"{what}: there is no file {source!r}")
        path.open("rb").close()
    except OSError as error:
        raise ConfigurationError(f"{what}: {source!r} cannot be read ({error.strerror})") from error


def entries(source: str, stream: BinaryIO, columns: Collection[str]) -> Iterator[tuple[int, Any]]:
    """Numbered rows, whatever they are; of Parquet only these `columns`. `source` is what errors call the file.

    Raises ConfigurationError where the file is in no known format, is damaged, or has a row that cannot be held.
    """
    start = stream.read(16)
    stream.seek(0)
    if start.startswith(parquet.MAGIC):
        yield from parquet.rows(source, stream, columns)
        return
    for magic, words in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise ConfigurationError(f"{source} {words}")
    yield from _values(source, _Text(source, stream))


def _values(source: str, text: _Text) -> Iterator[tuple[int, Any]]:
    number = 0
    in_list = text.next() == "["
    if in_list:
        text.skip()
    while following := text.next():
        if in_list and following == "]":
            text.skip()
            if text.next():
                raise ConfigurationError(f"{source}, line {text.line}: not valid JSON (text after the list)")
            return
        if in_list and number:
            if following != ",":
                raise ConfigurationError(f"{source}, row {number} (line {text.line}): not valid JSON (no ',' after it)")
            text.skip()
            if not text.next():
                break
        number += 1
        yield number, text.value(number)
    if in_list:
        raise ConfigurationError(f"{source}, line {text.line}: not valid JSON (the list has no end)")


class _Text:
    """A stream's text from `start` on, and as much of it in memory as a value needs."""

    def __init__(self, source: str, stream: BinaryIO):
        self.line = 1
        self._source = source
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._buffer, self._start = "", 0
        self._bytes, self._ended = 0, False

    def next(self) -> str:
        """The next character that is no space, which stays; "" at the end."""
        while True:
            self._go_to(_SPACE.match(self._buffer, self._start).end())  # type: ignore[union-attr]
            if self._start < len(self._buffer):
                return self._buffer[self._start]
            if self._ended:
                return ""
            self._more()

    def skip(self) -> None:
        self._start += 1

    def value(self, number: int) -> Any:
        """The JSON value that begins here."""
        where = f"{self._source}, row {number} (line {self.line})"
        while True:
            try:
                value, end = self._scan(self._buffer, self._start)
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated") or error.pos >= len(self._buffer) - 8
                if cut_off and not self._ended and len(self._buffer) - self._start <= LONGEST_ROW:
                    self._more()
                    continue
                if cut_off and not self._ended:
                    raise ConfigurationError(f"{where}: is longer than {LONGEST_ROW:,} characters") from error
                column = error.pos - self._buffer.rfind("\n", 0, error.pos)
                raise ConfigurationError(f"{where}: not valid JSON ({error.msg} at column {column})") from error
            except RecursionError as error:
                raise ConfigurationError(f"{where}: is nested too deeply for a row") from error
            except ValueError as error:
                raise ConfigurationError(f"{where}: has a number of thousands of digits: write it as text") from error
            self._go_to(end)
            return value

    def _go_to(self, place: int) -> None:
        self.line += self._buffer.count("\n", self._start, place)
        self._start = place

    def _more(self) -> None:
        data = self._stream.read(max(_CHUNK, len(self._buffer) - self._start))
        self._bytes += len(data)
        self._ended = not data
        try:
            text = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            place = self._bytes - len(error.object) + error.start
            line = self.line + self._buffer.count("\n", self._start) + error.object.count(b"\n", 0, error.start)
            what = f"{self._source} is neither Parquet nor UTF-8 text (byte {place}, line {line})"
            raise ConfigurationError(f"{what}: save it as JSONL in UTF-8") from error
        self._buffer, self._start = self._buffer[self._start :] + text, 0
