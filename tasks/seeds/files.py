"""Data files: told apart by their first bytes, unpacked, and read a few rows at a time.

JSON as a list, JSON lines, and JSON objects over several lines are one thing here: a stream of values, of which one is
in memory at a time. What Parquet unpacks to is in `tasks.seeds.parquet`.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from infra.errors import ConfigurationError
from tasks.seeds import parquet
from tasks.seeds.sources import plain_name

LONGEST_ROW = 2**24  # characters: no model's context holds more
_CHUNK = 2**20
_PACKED = (gzip.GzipFile, bz2.BZ2File, lzma.LZMAFile)
_DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowException)
_SPACE = re.compile(r"[ \t\r\n]*")
_OTHER_FORMATS = {
    b"PK\x03\x04": "is a zip archive: unpack it",
    b"ARROW1": "is an Arrow file: save it as Parquet",
    b"SQLite format 3": "is a SQLite database: save the rows as JSONL in UTF-8",
    b"\xff\xfe": "is neither Parquet nor UTF-8 text but seems to be UTF-16: save it as JSONL in UTF-8",
    b"\xfe\xff": "is neither Parquet nor UTF-8 text but seems to be UTF-16: save it as JSONL in UTF-8",
}


def opened(path: Path) -> BinaryIO:
    """A file's bytes, unpacked as they are read where it is packed by gzip, zstd, bzip2 or xz."""
    with path.open("rb") as stream:
        start = stream.read(6)
    if start.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.open(path))
    if start.startswith(b"BZh"):
        return cast(BinaryIO, bz2.open(path))
    if start.startswith(b"\xfd7zXZ"):
        return cast(BinaryIO, lzma.open(path))
    if start.startswith(b"(\xb5/\xfd"):
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def beginning(source: str, stream: BinaryIO) -> bytes:
    """The first bytes, which stay; ConfigurationError where a packed file is damaged."""
    try:
        return stream.peek(16)[:16]  # type: ignore[attr-defined, no-any-return]
    except _DAMAGED as error:
        raise damaged(source, error) from error


def damaged(source: str, error: Exception) -> ConfigurationError:
    """What is said of a packed file that does not unpack."""
    return ConfigurationError(f"{source} is packed and does not unpack ({' '.join(str(error).split())[:100]})")


def entries(source: str, stream: BinaryIO, columns: Collection[str]) -> Iterator[tuple[int, Any]]:
    """Numbered rows, whatever they are; of Parquet only these `columns`. `source` is what errors call the file.

    Raises ConfigurationError where the file is in no known format, is damaged, or has a row that cannot be held.
    """
    start = beginning(source, stream)
    if start.startswith(parquet.MAGIC):
        if not stream.seekable() or isinstance(stream, _PACKED):
            raise ConfigurationError(f"{source} is a packed Parquet file, which is packed by itself: unpack it")
        yield from parquet.rows(source, stream, columns)
        return
    for magic, words in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise ConfigurationError(f"{source} {words}")
    name = plain_name(source.lower())
    if name.endswith((".csv", ".tsv")):
        yield from _table(source, stream, "\t" if name.endswith(".tsv") else ",")
        return
    yield from _values(source, _Text(source, stream))


def _table(source: str, stream: BinaryIO, delimiter: str) -> Iterator[tuple[int, Any]]:
    """Rows of comma- or tab-separated values, whose first line names the columns."""
    csv.field_size_limit(LONGEST_ROW)
    reader = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    try:
        for number, row in enumerate(reader, 1):
            if None in row:
                raise ConfigurationError(
                    f"{source}, row {number} (line {reader.line_num}): has more fields than the first line has names"
                )
            yield number, row
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{source} is no UTF-8 text after line {reader.line_num}: save it in UTF-8") from error
    except csv.Error as error:
        raise ConfigurationError(f"{source}, line {reader.line_num}: no comma-separated values ({error})") from error
    except _DAMAGED as error:
        raise damaged(source, error) from error


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
        try:
            data = self._stream.read(max(_CHUNK, len(self._buffer) - self._start))
        except _DAMAGED as error:
            raise damaged(self._source, error) from error
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
