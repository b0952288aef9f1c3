"""Runs Python that a model wrote: no files, no network, no processes, bounded in time and memory.

The interpreter is Pydantic's Monty, in worker processes of its own. It knows a part of Python and of the
standard library, so there are three outcomes: code ran, code failed, or it cannot be judged here.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import importlib
import os
import re
from types import TracebackType
from typing import Any, Literal

import pydantic_monty
from pydantic import BaseModel

_FEED_S = 2.0
_MEMORY_BYTES = 64_000_000
_OUTPUT_BYTES = 1_000_000
# a sleep would not count towards the time limit; a check of a random program comes out the same each time
_OS_POLICY: Any = {"sleep": "zero", "random_start": {"seed": 0}}
# What honest code may want and Monty lacks: its absence says nothing. Whatever else is missing reaches out.
_HARMLESS_MODULES = """
    abc array ast base64 bisect calendar cmath contextlib copy csv decimal difflib doctest enum fractions
    hashlib heapq hmac inspect io logging matplotlib networkx numbers numpy operator pandas pprint queue scipy
    secrets sklearn statistics string struct sympy textwrap time timeit torch types typing_extensions
    unicodedata unittest uuid warnings weakref zlib
"""
_HARMLESS = frozenset(_HARMLESS_MODULES.split())
_REACHING = frozenset({"__import__", "breakpoint", "compile", "globals", "locals", "vars"})
_NO_MODULE = re.compile(r"No module named '([\w.]+)'")
_NO_NAME = re.compile(r"name '(\w+)' is not defined")
_NO_ATTRIBUTE = re.compile(r"(?:type object )?'(\w+)'(?: object)? has no attribute '(\w+)'")
_NO_PART = re.compile(r"module '(?P<module>\w+)' has no attribute '(?P<name>\w+)'")
_NO_IMPORT = re.compile(r"cannot import name '(?P<name>\w+)' from '(?P<module>\w+)'")
# Modules that the sandbox has in part, and that reach nothing outside; of `sys` what is harmless.
_IN_PART = {
    "collections",
    "dataclasses",
    "datetime",
    "functools",
    "itertools",
    "json",
    "math",
    "random",
    "re",
    "typing",
}
_OF_SYS = {"exit", "setrecursionlimit", "getrecursionlimit", "getsizeof", "intern", "float_info", "int_info"}


class PythonOutcome(BaseModel):
    """`unknown` means that the code needs what the sandbox does not have."""

    result: Literal["passed", "failed", "unknown"]
    detail: str = ""


class PythonSandbox:
    """A pool of interpreters; use it in a `with`. They start when they are first needed."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._pool: Any = None
        self._free = asyncio.Semaphore(os.cpu_count() or 1)

    def __enter__(self) -> PythonSandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    async def run(self, code: str, tests: list[str] | None = None) -> PythonOutcome:
        """Run a program, then each test on what it defined; the first that fails decides."""
        async with self._free:
            if self._pool is None:
                self._pool = self._stack.enter_context(pydantic_monty.Monty())
            return await asyncio.to_thread(self._run, code, tests or [])

    def _run(self, code: str, tests: list[str]) -> PythonOutcome:
        limits: Any = {"max_feed_duration_secs": _FEED_S, "max_memory": _MEMORY_BYTES}
        step = ""
        try:
            with self._pool.checkout(limits=limits, os_policy=_OS_POLICY) as session:
                for step in [code, *tests]:
                    session.feed_run(step, print_callback=pydantic_monty.CollectString(_OUTPUT_BYTES))
        except pydantic_monty.MontyCrashedError:
            return PythonOutcome(result="failed", detail="crashed the interpreter")
        except pydantic_monty.MontyError as error:
            where = "" if step is code else f" in {step[:200]!r}"
            return _judged(error.exception(), where)
        return PythonOutcome(result="passed")


def _judged(error: BaseException, where: str) -> PythonOutcome:
    text = (str(error).splitlines() or [""])[0][:300]
    known = "unknown" if _is_lack_of_the_sandbox(error, text) else "failed"
    return PythonOutcome.model_validate({"result": known, "detail": f"{type(error).__name__}: {text}{where}"})


def _is_lack_of_the_sandbox(error: BaseException, text: str) -> bool:
    """Whether real Python would have gone on, with nothing outside touched."""
    if isinstance(error, NotImplementedError):
        return True
    if isinstance(error, RuntimeError):
        return "Internal error" in text
    if found := _NO_MODULE.search(text):
        return found.group(1).split(".")[0] in _HARMLESS
    if found := _NO_NAME.search(text):
        return hasattr(builtins, found.group(1)) and found.group(1) not in _REACHING
    if found := _NO_PART.search(text) or _NO_IMPORT.search(text):
        module, name = found["module"], found["name"]
        if module == "sys":
            return name in _OF_SYS
        return module in _IN_PART and not name.startswith("_") and hasattr(importlib.import_module(module), name)
    if found := _NO_ATTRIBUTE.search(text):
        kind = getattr(builtins, found.group(1), None)
        return hasattr(kind, found.group(2)) and not found.group(2).startswith("__")
    return False
