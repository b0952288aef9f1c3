"""How fast the whole augmentation stage asks, beside bare LiteLLM, and what memory it takes for more rows.

    python -m tests.bench augment [--rows 5000] [--latency 0.2] [--concurrency 64] [--processes 1]

A fifth of the rows are seeds, the others Expansion writes; all go through all agents, in and out of a real
SeaweedFS. `requests_s` is the number of requests that the endpoint counted over the time from the first one's
arrival to the last one's answer, so that batches' ends, Selection and storage count and the start of processes
does not (`stage_s` is everything). Bare LiteLLM asks the same endpoint what the stage's controller asks for the
first seeds, at the same concurrency in one process, before and after the others; its better figure counts.

Memory is the most that the stage's own process had at a time, without its provider processes, which are given
beside it; `rss_growth` is from a fifth of the rows to all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import psutil

from infra.sandbox.python import PythonSandbox
from infra.services.embedded import embedded_storage
from infra.store import storage
from tasks.augment.controller import verify, write_and_score
from tasks.augment.settings import Augmentation
from tasks.llm.agent import Agent
from tasks.rows import TRAIN, Row, read_rows
from tests.bench.requests import raw_litellm
from tests.support import augmentation, program
from tests.support.endpoint import endpoint, tell
from tests.support.endpoint_answers import answer

_EXPANSIONS = 4
_RAW_REQUESTS = 2_000


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench augment")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as home:
        os.environ["DISTILFLOW_HOME"] = home
        with embedded_storage():
            storage.ensure_bucket()
            asks = _asks(options.concurrency)
            bare = [_bare(asks, options)]
            few = _stage(options.rows // 5, options)
            many = _stage(options.rows, options)
            bare.append(_bare(asks, options))
    raw = max(figures["requests_s"] for figures in bare)
    return {
        "requests_s": many["requests_s"],
        "raw_litellm_requests_s": raw,
        "ratio": round(many["requests_s"] / raw, 2),
        "most_possible_requests_s": options.concurrency / options.latency,
        "peak_rss_mib_1k": few["memory_mib"],
        "peak_rss_mib_5k": many["memory_mib"],
        "rss_growth": round(many["memory_mib"] / few["memory_mib"] - 1, 3),
        "few": few,
        "many": many,
        "raw_litellm": bare,
        "load_average": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
    }


def _stage(rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """The stage in a process of its own, with nothing in its cache."""
    seeds = rows // (1 + _EXPANSIONS)
    told = {
        "expansions_per_seed": _EXPANSIONS,
        "min_score": 0,
        "concurrency": options.concurrency,
        "processes": options.processes,
    }
    with tempfile.TemporaryDirectory() as home, endpoint(latency=options.latency) as url:
        os.environ["DISTILFLOW_BUCKET"] = f"bench-{rows}"
        storage.ensure_bucket()
        process = augmentation.start(url, seeds, told, DISTILFLOW_HOME=home)
        providers = 0.0
        while process.poll() is None:
            providers = max([providers, *_provider_memory(process.pid)])
            time.sleep(0.2)
        done = program.told(process)
        stats = tell(url, "stats")
    return {
        "rows": done["ref"]["counts"]["seeds"] + done["ref"]["counts"]["expanded"],
        "requests": stats["requests"],
        "requests_s": round(stats["requests"] / stats["seconds"], 1),
        "stage_s": done["seconds"],
        "memory_mib": round(done["memory_mib"], 1),
        "provider_memory_mib": round(providers, 1),
        "max_in_flight": stats["max_in_flight"],
        "cpu_s": done["cpu_s"],
    }


def _bare(asks: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, float]:
    with endpoint(latency=options.latency) as url:
        return raw_litellm(url, asks, options.concurrency)


def _provider_memory(pid: int) -> Iterator[float]:
    try:
        for child in psutil.Process(pid).children():
            if "tasks.llm.litellm_process" in child.cmdline():
                yield augmentation.memory_mib(child.pid)
    except (psutil.Error, OSError, IndexError):  # it ended meanwhile
        return


def _asks(concurrency: int) -> list[dict[str, Any]]:
    """What the controller asks about some seeds and their expansions, mixed, as the agents' rows come mixed."""
    found: list[dict[str, Any]] = []

    async def ask(agent: Agent[Any], row: Row, **settings: Any) -> Any:
        messages = agent.messages(row, **settings)
        found.append({"messages": messages, "schema": agent.schema, "schema_name": agent.answer.__name__})
        return agent.answer.model_validate(answer(json.loads(messages[-1]["content"]), seed=0))

    async def all_agents() -> None:
        options = Augmentation.model_validate({"expansions_per_seed": _EXPANSIONS})
        seeds = list(islice(read_rows(augmentation.load_seeds(200), TRAIN), 200))
        batch = await write_and_score(ask, seeds, options, {}, lambda: None)
        with PythonSandbox() as sandbox:
            await verify(ask, batch.rows, options, {}, sandbox)

    asyncio.run(all_agents())
    random.Random(0).shuffle(found)
    return found[: _RAW_REQUESTS + 2 * concurrency]
