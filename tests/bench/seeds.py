"""What loading a data file takes, in time and memory: of many rows, and of files that unpack hugely.

    python -m tests.bench seeds [--rows 1000000] [--forms jsonl json parquet texts turns page values]

Each file is written, and loaded into storage by a process of its own. The last four are Parquet of about a megabyte:
one long text for every row, the same inside of conversations, pages of zeros, and ten million equal rows; where
one is refused, `told` is the sentence. `cpu_s` is this process's own; `import_mib` is what it takes before it reads.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.stages import load

_ROOT = Path(__file__).parents[2]
_AT_ONCE = 50_000
_MEGABYTE = "x" * 1_000_000


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="seeds")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--forms", nargs="+", choices=_FILES, default=list(_FILES))
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {"rows": options.rows}
    for form in options.forms:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "seeds"
            _FILES[form](path, options.rows)
            found[form] = {"file_mib": _mib(path.stat().st_size), **_loaded(path, folder)}
            print(form, found[form], flush=True)
    return found


def _loaded(path: Path, folder: str) -> dict[str, Any]:
    code = "import sys; from tests.bench.seeds import load_here; load_here(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=_ROOT,
        env={**os.environ, "DISTILFLOW_HOME": folder},
        capture_output=True,
        text=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def load_here(path: str) -> None:
    """Load the file and print what it took."""
    from infra.errors import ConfigurationError
    from infra.services.embedded import embedded_storage
    from infra.store import storage
    from tasks.seeds.stage import Sources
    from tasks.text.language import language_of

    told: dict[str, Any] = {}
    language_of("its model is loaded before")
    with embedded_storage():
        storage.ensure_bucket()
        before = _peak_mib()
        started, cpu = time.perf_counter(), time.process_time()
        try:
            ref = load(Sources(path, None, None), heldout_share=0.01, response_required=True)
            told["counts"] = ref.counts
        except ConfigurationError as error:
            told["told"] = str(error)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        told |= {"seconds": round(seconds, 1), "cpu_s": round(cpu, 1), "import_mib": before, "peak_mib": _peak_mib()}
    print(json.dumps(told))


def _peak_mib() -> int:
    """Of this program: getrusage would count what forked it too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def _mib(size: int) -> float:
    return round(size / 2**20, 2)


def _rows(count: int) -> Iterator[dict[str, str]]:
    dice = random.Random(0)
    words = ["".join(dice.choices("abcdefghijklmnop", k=dice.randint(2, 9))) for _ in range(5_000)]
    for number in range(count):
        text = " ".join(dice.choices(words, k=60))
        yield {"instruction": f"{text[:150]} {number}", "input": "", "output": text[150:]}


def _jsonl(path: Path, rows: int) -> None:
    with path.open("w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in _rows(rows))


def _json(path: Path, rows: int) -> None:
    with path.open("w") as stream:
        stream.write("[")
        stream.writelines((",\n" if number else "") + json.dumps(row) for number, row in enumerate(_rows(rows)))
        stream.write("]")


def _parquet(path: Path, rows: int) -> None:
    schema = pa.schema([(name, pa.string()) for name in ("instruction", "input", "output")])
    part: list[dict[str, str]] = []
    with pq.ParquetWriter(path, schema) as writer:
        for number, row in enumerate(_rows(rows), 1):
            part.append(row)
            if len(part) == _AT_ONCE or number == rows:
                writer.write_table(pa.Table.from_pylist(part, schema=schema))
                part = []


def _texts(path: Path, _rows: int) -> None:
    output = pa.DictionaryArray.from_arrays(np.zeros(4_500, "i4"), [_MEGABYTE])
    pq.write_table(pa.table({"instruction": list(map(str, range(4_500))), "output": output}), path, compression="zstd")


def _turns(path: Path, _rows: int) -> None:
    schema = pa.schema([("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in range(45):
            said = [
                [{"role": "user", "content": str(100 * part + n)}, {"role": "assistant", "content": _MEGABYTE}]
                for n in range(100)
            ]
            writer.write_table(pa.table({"messages": said}, schema=schema))


def _page(path: Path, _rows: int) -> None:
    output = [_MEGABYTE * 10] * 150
    table = pa.table({"instruction": list(map(str, range(150))), "output": output})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, data_page_size=2**31 - 1)


def _values(path: Path, _rows: int) -> None:
    same = pa.DictionaryArray.from_arrays(np.zeros(10_000_000, "i1"), ["equal"])
    pq.write_table(pa.table({"instruction": same, "output": same}), path, compression="zstd")


_FILES: dict[str, Callable[[Path, int], None]] = {
    "jsonl": _jsonl,
    "json": _json,
    "parquet": _parquet,
    "texts": _texts,
    "turns": _turns,
    "page": _page,
    "values": _values,
}
