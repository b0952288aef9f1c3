"""The augmentation stage on made-up seeds, here or as a program of its own, which tests kill and the bench measures.

    python -m tests.support.augmentation '{"url": "http://127.0.0.1:1234/v1", "seeds": 99, "options": {}, "batch": 50}'

prints one line of JSON: the artifact's reference, the batches that this process did, how long it took.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from infra.store.artifacts import ArtifactRef
from infra.store.claims import Claims
from tasks.augment import stage
from tasks.augment.settings import Augmentation
from tasks.llm.protocol import LLMEndpoint
from tasks.seeds.stage import Sources
from tests.support import program
from tests.support.endpoint_answers import answer
from tests.support.stages import augment_workspace, load

MODEL = "openai/test"
_CATEGORIES = ("Reasoning", "Writing", "Translation", "Knowledge", "Summarization")


async def _alone(_name: str, do: Callable[[], Awaitable[None]]) -> None:
    await do()


def load_seeds(count: int) -> ArtifactRef:
    """The artifact of `count` seeds, the same ones each time; fewer are the start of more."""
    rows = answer({"agent": "expansion", "n": count + 1}, seed=0)["instructions"]
    lines = [
        json.dumps({**row, "output": row["response"], "category": _CATEGORIES[number % len(_CATEGORIES)]})
        for number, row in enumerate(rows)
    ]
    with tempfile.TemporaryDirectory() as folder:
        seeds, heldout = Path(folder) / "seeds.jsonl", Path(folder) / "heldout.jsonl"
        seeds.write_text("\n".join(lines[1:]))
        heldout.write_text(lines[0])
        return load(Sources(str(seeds), str(heldout), None), heldout_share=0.1, response_required=False)


def augment(
    url: str,
    seeds: int,
    options: dict[str, Any],
    key: str = "key",
    as_task: Any = _alone,
    note: Callable[[str], None] = lambda text: None,
) -> ArtifactRef:
    """The stage's artifact, made here; `options` are Augmentation's."""
    loaded, chosen = load_seeds(seeds), Augmentation.model_validate(options)
    work = augment_workspace(loaded, chosen, MODEL)
    return stage.augment(
        work, loaded, chosen, LLMEndpoint(MODEL, url, key), lambda done, total: None, as_task, note=note
    )


def start(
    url: str, seeds: int, options: dict[str, Any], batch: int = 100, lease_s: float = 45.0, /, **environment: str
) -> subprocess.Popen[str]:
    """The stage in a process of its own, with batches of so many seeds and claims that go stale after `lease_s`."""
    given = {"url": url, "seeds": seeds, "options": options, "batch": batch, "lease_s": lease_s}
    return program.start("tests.support.augmentation", given, **environment)


def memory_mib(pid: int | str = "self") -> float:
    """The most memory that a process had at a time (of its own program, unlike `ru_maxrss`)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    done: list[str] = []

    async def as_task(name: str, do: Callable[[], Awaitable[None]]) -> None:
        await do()
        done.append(name)

    given = json.loads(sys.argv[1])
    stage._SEEDS_PER_BATCH = given["batch"]
    vars(stage)["Claims"] = functools.partial(Claims, stale_s=given["lease_s"])
    started = time.monotonic()
    ref = augment(given["url"], given["seeds"], given["options"], as_task=as_task)
    seconds = round(time.monotonic() - started, 1)
    figures = {"seconds": seconds, "cpu_s": round(time.process_time(), 1), "memory_mib": memory_mib()}
    print(json.dumps({"ref": ref.model_dump(), "batches": done, **figures}))


if __name__ == "__main__":
    main()
