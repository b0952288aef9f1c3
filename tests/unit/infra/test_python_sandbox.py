"""Python from a model: it computes, or it is stopped; it reaches nothing, and a lack of ours is not its fault."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.sandbox.python import PythonOutcome, PythonSandbox

HOSTILE = {
    "reads a file": "print(open('/etc/passwd').read())",
    "writes a file": "open('{place}', 'w').write('x')",
    "writes by pathlib": "from pathlib import Path\nPath('{place}').write_text('x')",
    "lists a folder": "import os\nos.listdir('/')",
    "removes a file": "import os\nos.remove('{victim}')",
    "removes a tree": "import shutil\nshutil.rmtree('{victim}')",
    "makes a temporary file": "import tempfile\ntempfile.mkstemp()",
    "reads the environment": "import os\nprint(os.environ['SECRET_KEY'])",
    "reads a variable": "import os\nassert os.getenv('SECRET_KEY') == 'sk-secret'",
    "opens a socket": "import socket\nsocket.create_connection(('127.0.0.1', 22))",
    "opens a page": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')",
    "starts a process": "import subprocess\nsubprocess.run(['touch', '{place}'])",
    "calls a shell": "import os\nos.system('touch {place}')",
    "forks for ever": "import os\nwhile True:\n    os.fork()",
    "starts threads": "import threading\nthreading.Thread(target=print).start()",
    "kills": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "calls C": "import ctypes\nctypes.CDLL(None).system(b'touch {place}')",
    "goes through sys": "import sys\nsys.modules['os'].system('touch {place}')",
    "imports by name": "__import__('os').system('touch {place}')",
    "imports by importlib": "import importlib\nimportlib.import_module('subprocess')",
    "imports builtins": "import builtins\nbuiltins.open('{place}', 'w')",
    "unpickles": "import pickle\npickle.loads(b'cos\\nsystem\\n(S\"touch {place}\"\\ntR.')",
    "walks classes": "[c for c in ().__class__.__bases__[0].__subclasses__() if 'Popen' in str(c)][0]('ls')",
    "walks a string's": "''.__class__.__mro__[1].__subclasses__()",
    "walks by getattr": "getattr(getattr('', '__cl' + 'ass__'), '__ba' + 'se__')",
    "walks by format": "'{0.__class__.__init__.__globals__}'.format(1)",
    "takes globals": "(lambda: 0).__globals__['__builtins__']",
    "walks frames": "try:\n    1 / 0\nexcept Exception as e:\n    e.__traceback__.tb_frame.f_back.f_globals",
    "collects garbage": "import gc\ngc.get_objects()",
    "compiles": "exec(compile('import os; os.system(\"touch {place}\")', '', 'exec'))",
    "evaluates": 'eval(\'__import__("os").system("touch {place}")\')',
    "executes": "exec('import os\\nos.system(\"touch {place}\")')",
    "breaks into a debugger": "breakpoint()",
    "fills memory": "x = [0]\nwhile True:\n    x = x + x",
    "asks for much memory": "x = 'a' * 10**10",
    "asks for a large number": "x = 10 ** 10**9",
    "counts to memory": "list(range(10**9))",
    "joins to memory": "','.join(str(i) for i in range(10**9))",
    "pads to memory": "f'{1:>1000000000}'",
    "hides a bomb": "try:\n    x = 'a' * 10**10\nexcept BaseException:\n    pass",
    "prints much": "print('x' * 5_000_000)",
    "recurses": "def f(n):\n    return f(n + 1)\nf(0)",
    "nests deeply": "x = " + "[" * 100_000 + "]" * 100_000,
    "nests structures": "x = []\ny = []\nx.append(y)\ny.append(x)\nx == y",
    "is cut off": "def f(:",
    "holds a NUL": "x = 1\n\x00",
    "holds a lone surrogate": "x = '\ud800'",
}
ENDLESS = {
    "loops": "while True:\n    pass",
    "loops and catches": "while True:\n  try:\n    while True:\n      pass\n  except BaseException:\n    pass",
    "prints for ever": "while True:\n    print('x' * 1_000)",
    "sleeps again and again": "import time\nwhile True:\n    time.sleep(1)",
    "awaits again and again": (
        "import asyncio\nasync def f():\n    while True:\n        await asyncio.sleep(1)\nasyncio.run(f())"
    ),
    "recurses twice": "def f():\n    try:\n        f()\n    finally:\n        f()\nf()",
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[PythonSandbox]:
    with PythonSandbox() as sandbox:
        yield sandbox


def _run(sandbox: PythonSandbox, code: str, *tests: str) -> PythonOutcome:
    return asyncio.run(sandbox.run(code, list(tests)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What must not be touched: a file to remove, and the place of one to write."""
    monkeypatch.setenv("SECRET_KEY", "sk-secret")
    (tmp_path / "victim").write_text("here")
    return tmp_path


@pytest.mark.parametrize("code", HOSTILE.values(), ids=HOSTILE)
def test_code_that_reaches_out_or_swells_fails_and_touches_nothing(
    sandbox: PythonSandbox, folder: Path, code: str
) -> None:
    code = code.replace("{place}", str(folder / "place")).replace("{victim}", str(folder / "victim"))
    started, before = time.monotonic(), set(psutil.Process().children(recursive=True))
    outcome = _run(sandbox, code)
    assert outcome.result == "failed", outcome
    assert outcome.detail
    assert "sk-secret" not in outcome.detail
    assert time.monotonic() - started < 8
    assert [path.name for path in folder.iterdir()] == ["victim"]
    assert (folder / "victim").read_text() == "here"
    new = set(psutil.Process().children(recursive=True)) - before  # interpreters of the pool, and nothing else
    assert {process.name() for process in new} <= {"monty"}
    assert len(new) <= (os.cpu_count() or 1)
    assert _run(sandbox, "x = 1", "assert x == 1").result == "passed"


async def _all(codes: list[str]) -> list[PythonOutcome]:
    with PythonSandbox() as sandbox:
        return list(await asyncio.gather(*map(sandbox.run, codes)))


def test_endless_code_is_stopped_and_the_sandbox_works_on() -> None:
    started = time.monotonic()
    *stopped, after = asyncio.run(_all([*ENDLESS.values(), "assert 1 + 1 == 2"]))
    assert {name: one.result for name, one in zip(ENDLESS, stopped, strict=True)} == dict.fromkeys(ENDLESS, "failed")
    assert after.result == "passed"
    assert time.monotonic() - started < 5 * len(ENDLESS)


def test_a_sleep_takes_no_time(sandbox: PythonSandbox) -> None:
    started = time.monotonic()
    assert _run(sandbox, "import time\ntime.sleep(60)\nx = 1", "assert x == 1").result == "passed"
    assert time.monotonic() - started < 5


def test_programs_share_nothing(sandbox: PythonSandbox) -> None:
    for _ in range(2 * (os.cpu_count() or 1)):  # every interpreter of the pool
        assert _run(sandbox, "def abs(x):\n    return 7\nsecret = 1", "assert abs(secret) == 7").result == "passed"
    for _ in range(2 * (os.cpu_count() or 1)):
        assert _run(sandbox, "", "assert abs(-1) == 1", "secret").detail == (
            "NameError: name 'secret' is not defined in 'secret'"
        )


def test_tests_run_on_what_the_program_defined(sandbox: PythonSandbox) -> None:
    code = "def double(x):\n    return 2 * x"
    assert _run(sandbox, code, "assert double(2) == 4", "assert double(0) == 0") == PythonOutcome(result="passed")
    failed = _run(sandbox, code, "assert double(2) == 4", "assert double(3) == 7")
    assert failed.result == "failed"
    assert failed.detail.endswith("in 'assert double(3) == 7'")
    assert _run(sandbox, "1 / 0", "assert True").detail == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("bomb", ["while True:\n    pass", "x = 'a' * 10**10", "open('/etc/passwd')", "assert False"])
def test_a_function_that_goes_off_in_its_test_fails(sandbox: PythonSandbox, bomb: str) -> None:
    body = bomb.replace("\n", "\n    ")
    outcome = _run(sandbox, f"def f():\n    {body}\n", "f()")
    assert outcome.result == "failed"


@pytest.mark.parametrize(
    "code",
    [
        "import numpy as np\nnp.zeros(3)",
        "import pandas",
        "def numbers():\n    yield 1\nlist(numbers())",
        "input('How many? ')",
        "exit(0)",
        "import sys\nsys.setrecursionlimit(10_000)",
        "import collections\ncollections.ChainMap({})",
        "from functools import singledispatch",
        "str.maketrans('a', 'b')",
    ],
)
def test_what_only_the_sandbox_lacks_is_not_judged(sandbox: PythonSandbox, code: str) -> None:
    outcome = _run(sandbox, code)
    assert outcome.result == "unknown"
    assert outcome.detail


@pytest.mark.parametrize(
    "code",
    [
        "import no_such_module",
        "undefined_name",
        "import math\nmath.no_such_function(1)",
        "from collections import NoSuchClass",
        "import sys\nsys.no_such_name",
        "str.no_such_method()",
        "[].no_such_method()",
        "raise ValueError('wrong')",
        "assert 1 == 2",
        "x = 1 / 0",
        "'a' + 1",
    ],
)
def test_what_fails_in_any_python_fails(sandbox: PythonSandbox, code: str) -> None:
    assert _run(sandbox, code).result == "failed"


@pytest.mark.parametrize(
    "code",
    [
        "import math, re, json, itertools, collections, functools\nx = math.sqrt(2)",
        "class A:\n    def __init__(self):\n        self.x = 1\nassert A().x == 1",
        "assert sorted({'b': 1, 'a': 2}) == ['a', 'b']\nprint(f'{3.14159:.2f}')",
        "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\nassert fib(15) == 610",
        "",
    ],
)
def test_honest_programs_pass(sandbox: PythonSandbox, code: str) -> None:
    outcome = _run(sandbox, code)
    assert outcome == PythonOutcome(result="passed")


def test_many_programs_run_side_by_side() -> None:
    codes = [f"x = {n}\nassert x % 2 == 0" for n in range(40)]
    results = [outcome.result for outcome in asyncio.run(_all(codes))]
    assert results == ["passed", "failed"] * 20


def test_no_process_is_left_when_it_closes() -> None:
    before = set(psutil.Process().children(recursive=True))
    asyncio.run(_all(["x = 1"] * 4))
    assert set(psutil.Process().children(recursive=True)) <= before
