"""How many LLM requests a second the augmentation stage can make, beside bare LiteLLM in one process.

`python -m tests.bench requests [--requests 1500] [--concurrency 64] [--latency 0.2] [--processes 1 2 3]`. Both
ask the same local endpoint (which needs cores too) the same things; imports and the first requests, which build
clients, are not timed. Bare LiteLLM runs before and after the others and counts with its better figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.support.endpoint import endpoint, tell

_TEXT = {"type": "string"}
_SCHEMA = {
    "type": "object",
    "properties": {"instruction": _TEXT, "response": _TEXT},
    "required": ["instruction", "response"],
    "additionalProperties": False,
}
_SYSTEM = "Rewrite the instruction so that a student has more to learn from it, and answer it step by step. " * 6


def raw_litellm(url: str, asks: list[dict[str, Any]], concurrency: int) -> dict[str, float]:
    """Requests a second of bare `litellm.acompletion`, in a process of its own, and its CPU ms a request.

    An ask has `messages`, `schema` and `schema_name`; the last `2 * concurrency` are asked first, to build
    clients, and are not timed.
    """
    command = [sys.executable, "-m", "tests.bench.requests", url, str(concurrency)]
    lines = "\n".join(map(json.dumps, asks))
    ran = subprocess.run(
        command, check=True, input=lines, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    return json.loads(ran.stdout.splitlines()[-1])


def through_providers(url: str, requests: int, concurrency: int, processes: int) -> dict[str, float]:
    """Requests a second through LiteLLM in this process (0) or in others, and the CPU ms a request on both sides."""
    from tasks.llm.litellm_pool import Providers
    from tasks.llm.protocol import Configuration, LLMEndpoint, Request

    async def measured() -> dict[str, float]:
        configuration = Configuration({"default": [LLMEndpoint("openai/bench", url, "key")]})
        started = time.monotonic()
        async with Providers(configuration, processes) as providers:
            ready_s = time.monotonic() - started

            free = asyncio.Semaphore(concurrency)

            async def ask(number: int) -> None:
                async with free:
                    await providers.complete(Request(_messages(number), "default", 1.0, None, _SCHEMA, "Rewritten"))

            await asyncio.gather(*[ask(-number) for number in range(1, 2 * concurrency)])
            before, own = _cpu_s(providers.pids), time.process_time()
            rate = await _rate(ask, requests)
            return {
                "requests_s": rate,
                "ready_s": round(ready_s, 1),
                "cpu_ms": round((_cpu_s(providers.pids) - before) / requests * 1000, 2),
                "stage_cpu_ms": round((time.process_time() - own) / requests * 1000, 2),
            }

    return asyncio.run(measured())


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench requests")
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--processes", type=int, nargs="+", default=[0, 1, 2, 3])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as home, endpoint(latency=options.latency) as url:
        os.environ["DISTILFLOW_HOME"] = home
        numbers = [*range(options.requests), *range(-2 * options.concurrency, 0)]
        asks = [{"messages": _messages(number), "schema": _SCHEMA, "schema_name": "Rewritten"} for number in numbers]
        bare = [raw_litellm(url, asks, options.concurrency)]
        by_processes = {
            processes: through_providers(url, options.requests, options.concurrency, processes)
            for processes in options.processes
        }
        bare.append(raw_litellm(url, asks, options.concurrency))
        assert tell(url, "stats")["max_in_flight"] == options.concurrency
    best = max(figures["requests_s"] for figures in by_processes.values())
    raw = max(figures["requests_s"] for figures in bare)
    return {
        "requests_s": best,
        "raw_litellm_requests_s": raw,
        "ratio": round(best / raw, 2),
        "most_possible_requests_s": options.concurrency / options.latency,
        "raw_litellm": bare,
        "by_processes": by_processes,
        "load_average": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
    }


async def _rate(ask: Callable[[int], Awaitable[None]], requests: int) -> float:
    started = time.monotonic()
    await asyncio.gather(*[ask(number) for number in range(requests)])
    return round(requests / (time.monotonic() - started), 1)


def _messages(number: int) -> list[dict[str, str]]:
    payload = {"agent": "rewriting", "instruction": f"Sort list {number} of names by length and say why", "input": ""}
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": json.dumps(payload)}]


def _cpu_s(pids: list[int]) -> float:
    ticks = os.sysconf("SC_CLK_TCK")
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / ticks


async def _bare(url: str, asks: list[dict[str, Any]], concurrency: int) -> dict[str, float]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_LOG"] = "ERROR"
    import litellm

    litellm.suppress_debug_info = True
    free = asyncio.Semaphore(concurrency)

    async def ask(number: int) -> None:
        schema = {"name": asks[number]["schema_name"], "schema": asks[number]["schema"], "strict": True}
        async with free:
            await litellm.acompletion(
                model="openai/bench",
                api_base=url,
                api_key="key",
                messages=asks[number]["messages"],
                temperature=1.0,
                response_format={"type": "json_schema", "json_schema": schema},
                timeout=120,
            )

    requests = len(asks) - 2 * concurrency
    await asyncio.gather(*[ask(number) for number in range(requests, len(asks))])
    before = resource.getrusage(resource.RUSAGE_SELF)
    rate = await _rate(ask, requests)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"requests_s": rate, "cpu_ms": round(cpu_s / requests * 1000, 2)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_bare(sys.argv[1], list(map(json.loads, sys.stdin)), int(sys.argv[2])))))
