"""Bring the user's data into storage: training seeds, held-out rows, and databases to run SQL on."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from infra import settings
from infra.errors import ConfigurationError, TransientError
from infra.sandbox.sql import QueryError, ReadOnlyDatabase
from infra.stage import Made, OneArtifact, View
from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace, facts_of
from tasks.rows import HELDOUT, TRAIN, WITH_TOOLS, Row, to_parquet
from tasks.seeds import files, formats, references, sources, split
from tasks.seeds.account import PRIVATE, Account, sentences
from tasks.seeds.settings import Reading
from tasks.shipped import DATA
from tasks.text.categories import UNNAMED
from tasks.text.private import masked_row, private_in

KIND = "seeds"
STAGE_VERSION = 4
DATABASES = "databases/"
ROWS_PER_FILE, _CHARACTERS_PER_FILE = 10_000, 2**25


@dataclass(frozen=True)
class Sources:
    """Where the data lie. Shipped data, by their name as `seeds`, are all three."""

    seeds: str
    heldout: str | None
    databases: str | None

    @staticmethod
    def of(seeds: str, heldout: str | None, databases: str | None) -> Sources:
        if seeds not in DATA:
            return Sources(seeds, heldout, databases)
        data = DATA[seeds]
        return Sources(str(data.seeds), heldout or str(data.heldout), databases or str(data.databases))


class LoadSeeds(OneArtifact):
    """The user's data in storage, known by their content: where they lie does not matter.

    Without `heldout`, a share of the seeds' questions, chosen by their hash, is held out of everything before
    evaluation. No training row asks what a held-out row asks; the record's facts account for every row of the files.
    """

    kind: ClassVar = "seeds"
    makes: ClassVar = (KIND,)
    doing: ClassVar = "reading seeds"

    sources: Sources
    heldout_share: float
    response_required: bool
    reading: Reading = Reading()

    def workspace(self) -> Workspace:
        """Raises ConfigurationError for data that are not there, or dumps that do not load."""
        digests = {what: sources.digest(source, what) for what, source in self._given.items()}
        spec = {
            "seeds": digests["seeds"],
            "heldout": digests.get("heldout", self.heldout_share),
            "databases": {name: hashlib.sha256(dump.encode()).hexdigest() for name, dump in self._databases.items()},
            "response_required": self.response_required,
            **self.reading.identity(),
        }
        return Workspace(KIND, STAGE_VERSION, spec, {})

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        with contextlib.ExitStack() as stack:
            rows = stack.enter_context(split.opened(settings.work_dir()))
            accounts = {what: Account() for what in self._given}
            others: dict[str, list[str]] = {}
            for what, source in self._given.items():
                found = sources.find(source, what)
                others |= {what: [Path(name).name for name in found.others]} if found.others else {}
                digests = [self._read(file, what, rows, accounts[what]) for file in found.files]
                if sources.together(digests) != work.spec[what]:
                    raise TransientError(f"{what}: {source} was changed while it was read: run again")
            if "heldout" not in accounts:
                rows.hold_out(self.heldout_share)
            failing: list[dict[str, str]] = []
            of_heldout = accounts.get("heldout", accounts["seeds"])
            checked = references.running(rows.heldout(), self._databases, of_heldout, failing)
            unnamed, with_tools = Counter[str](), Counter[str]()
            training = rows.training(accounts["seeds"], self.reading.max_seeds, self.reading.near_heldout)
            counts = {
                "seeds": _put(work, TRAIN, _noting(training, unnamed, with_tools)),
                "heldout": _put(work, HELDOUT, _noting(checked, unnamed)),
                "unnamed": unnamed[UNNAMED],
                "databases": len(self._databases),
                "left_out": sum(account.left_out.total() for account in accounts.values()),
                **with_tools,
            }
        facts = {
            "files": {
                what: account.plain() | ({"others": others[what]} if what in others else {})
                for what, account in accounts.items()
            },
            "references_fail": failing,
            "handling": self.reading.private,
        }
        _check(counts, self._given, facts)
        for name, dump in self._databases.items():
            work.put(f"{DATABASES}{name}.sql", dump.encode())
        return work.publish((TRAIN, HELDOUT, DATABASES), counts, facts)

    def show(self, made: Made, view: View) -> str:
        ref = made.shown
        facts = facts_of(ref)
        for sentence in sentences(facts):
            view.warn(sentence)
        if facts["references_fail"]:
            view.warn(f"of the references that fail, the {references.named(facts['references_fail'])}")
        counts = ref.counts
        return f"{counts['seeds']:,} seeds, {counts['heldout']:,} held-out rows, {counts['databases']} databases"

    def _read(self, file: str, what: str, rows: split.Split, account: Account) -> str:
        """Add a file's rows; its digest."""
        is_heldout = what == "heldout"
        with sources.local(file, what) as path, files.opened(path) as stream:
            read = formats.read(
                file,
                stream,
                account,
                response_required=self.response_required,
                heldout=is_heldout,
                how=self.reading,
            )
            rows.add(HELDOUT if is_heldout else TRAIN, self._guarded(read, account), account)
            return storage.file_digest(path)

    def _guarded(self, rows: Iterator[Row], account: Account) -> Iterator[Row]:
        """The rows, with their private data as the user wants it; what there is goes into `account`."""
        how = self.reading.private
        for row in rows:
            found = private_in(row) if how != "keep" else {}
            account.private.update(dict.fromkeys(found, 1))
            if found and how == "drop":
                account.left_out[PRIVATE] += 1
            elif found and how == "mask":
                masked = masked_row(row)
                yield masked.model_copy(update={"origin_seed": masked.id})
            else:
                yield row

    @property
    def _given(self) -> dict[str, str]:
        named = {"seeds": self.sources.seeds, "heldout": self.sources.heldout}
        return {what: source for what, source in named.items() if source}

    @functools.cached_property
    def _databases(self) -> dict[str, str]:
        return read_databases(self.sources.databases) if self.sources.databases else {}


def _noting(rows: Iterable[Row], categories: Counter[str], with_tools: Counter[str] | None = None) -> Iterator[Row]:
    """The rows; their task categories, and those that use tools, are counted as they pass."""
    for row in rows:
        categories[row.task_category] += 1
        if with_tools is not None and row.uses_tools:
            with_tools[WITH_TOOLS] += 1
        yield row


def _put(work: Workspace, prefix: str, rows: Iterator[Row]) -> int:
    """Write rows in files of bounded size; the number of rows."""
    count = 0
    for index, part in enumerate(_parts(rows)):
        work.put(f"{prefix}{index:05}.parquet", to_parquet(part))
        count += len(part)
    return count


def _parts(rows: Iterator[Row]) -> Iterator[list[Row]]:
    part: list[Row] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len(row.tools) + sum(len(text) for message in row.messages for text in message.texts)
        if len(part) == ROWS_PER_FILE or size >= _CHARACTERS_PER_FILE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _check(counts: dict[str, int], names: dict[str, str], facts: dict[str, Any]) -> None:
    """Raise ConfigurationError where nothing is left on a side, AssertionError where a row was lost."""
    read = sum(file["read"] for file in facts["files"].values())
    if read != counts["seeds"] + counts["heldout"] + counts["left_out"]:
        raise AssertionError(f"rows were lost or doubled: {counts} of {facts}")
    if counts["seeds"] and counts["heldout"]:
        return
    why = "; ".join(sentences(facts)) or f"{read} rows were read"
    if "heldout" not in names:
        raise ConfigurationError(
            f"the rows of {names['seeds']} are too few to hold some out for evaluation: "
            f"add seeds with responses, or give `heldout` ({why})"
        )
    empty = "heldout" if counts["seeds"] else "seeds"
    raise ConfigurationError(f"{empty}: no row of {names[empty]} can be used ({why})")


def check_sources(given: Sources) -> Iterator[str]:
    """Of each source that is not there, or is none, a sentence; no row is read."""
    for what, source in (("seeds", given.seeds), ("heldout", given.heldout)):
        try:
            if source:
                sources.find(source, what)
        except ConfigurationError as error:
            yield str(error)
    if given.databases and next(_places(given.databases), None) is None:
        yield _no_dumps(given.databases)


def read_databases(where: str) -> dict[str, str]:
    """SQL dumps by name from a folder or s3:// prefix of `*.sql` files; each is loaded once to see that it can be."""
    dumps: dict[str, str] = {}
    for place, data in _dumps(where):
        name = Path(place).stem
        if name in dumps:
            raise ConfigurationError(f"databases: {where} holds two dumps named {name}.sql: rename one")
        try:
            dumps[name] = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigurationError(
                f"databases: {place} in {where} is no UTF-8 text (byte {error.start}): save it in UTF-8"
            ) from error
        try:
            ReadOnlyDatabase(dumps[name]).check()
        except QueryError as error:
            raise ConfigurationError(f"databases: {place} in {where} does not load ({error})") from error
    if not dumps:
        raise ConfigurationError(_no_dumps(where))
    return dumps


def _no_dumps(where: str) -> str:
    return f"databases: {where} holds no *.sql dumps"


def _dumps(where: str) -> Iterator[tuple[str, bytes]]:
    """Dumps by their place below a folder or s3:// prefix, in order."""
    for place in _places(where):
        if where.startswith("s3://"):
            yield place, storage.get(f"{where.rstrip('/')}/{place}") or b""
        else:
            yield place, (Path(where).expanduser() / place).read_bytes()


def _places(where: str) -> Iterator[str]:
    if where.startswith("s3://"):
        yield from (place for place in storage.keys(where.rstrip("/") + "/") if place.endswith(".sql"))
        return
    folder = Path(where).expanduser()
    yield from (str(path.relative_to(folder)) for path in sorted(folder.rglob("*.sql")) if path.is_file())


def open_databases(seeds: ArtifactRef) -> dict[str, ReadOnlyDatabase]:
    """The databases of a seeds artifact, ready to query."""
    reader = ArtifactReader(seeds)
    return {
        name.removeprefix(DATABASES).removesuffix(".sql"): ReadOnlyDatabase(data.decode())
        for name, data in reader.stream(DATABASES)
    }
