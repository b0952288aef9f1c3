"""What garbage collection speaks of: the policy, what was found, and what may go and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from infra.store.storage import Listed

DAY_S = 86400.0
FOLDERS_NAMED = 3  # of leftovers beside one artifact
What = Literal["unreachable", "unfinished", "leftovers", "expired", "local copy"]
_WHY: dict[What, str] = {
    "unreachable": "no kept report refers to it; last used {age} ago",
    "unfinished": "never finished; untouched for {age}",
    "leftovers": "{of} beside a finished artifact, which its record does not list; the newest is {age} old",
    "expired": "older than the limit; the newest is {age} old",
    "local copy": "its artifact is gone; fetched {age} ago",
}


@dataclass(frozen=True)
class Policy:
    """What is kept: `distilflow gc --help` says it in words."""

    kinds: tuple[str, ...]  # of artifacts that may go
    roots: tuple[str, ...]  # those of them that keep others for keep_days
    keep_days: float = 30.0
    keep_last: int = 10
    keep: tuple[str, ...] = ()  # addresses of artifacts
    grace_days: float = 7.0
    answers_days: float | None = None

    @property
    def grace_s(self) -> float:
        return self.grace_days * DAY_S


@dataclass(frozen=True)
class MadeArtifact:
    """A finished artifact: how long it was not used, and what it refers to (addresses, digests of models)."""

    uri: str
    kind: str
    age_s: float
    digest: str
    links: frozenset[str]


@dataclass(frozen=True)
class Garbage:
    """What may go, and why. `age_s` is the time since it was used, touched or written last."""

    what: What
    kind: str
    uri: str
    objects: int
    bytes: int
    age_s: float
    of: str = ""  # which files of an artifact

    @property
    def why(self) -> str:
        return _WHY[self.what].format(age=f"{self.age_s / DAY_S:.1f} days", of=self.of)


@dataclass
class Total:
    """Of one kind."""

    artifacts: int = 0
    objects: int = 0
    bytes: int = 0


@dataclass
class GarbagePlan:
    """What may go, and what stays by kind (all that is ours; objects of others are not counted)."""

    garbage: list[Garbage] = field(default_factory=list)
    kept: dict[str, Total] = field(default_factory=dict)

    def keeps(self, kind: str, artifacts: int, objects: int, size: int) -> None:
        total = self.kept.setdefault(kind, Total())
        total.artifacts += artifacts
        total.objects += objects
        total.bytes += size


@dataclass
class Tally:
    """What lies under one artifact's address, added up while its listing passes by."""

    objects: int = 0
    bytes: int = 0
    touched: float = 0.0  # when anything but a claim was written last
    finished: bool = False
    claims: list[Listed] = field(default_factory=list)
    unlisted: int = 0  # objects that the record does not list, past the grace age
    unlisted_bytes: int = 0
    unlisted_newest: float = 0.0
    unlisted_in: set[str] = field(default_factory=set)  # folders, such as checkpoint/; "files" for those in none
    unlisted_more: bool = False  # there are more folders than are named
