"""Write the demo's data files: seeds, the held-out split, database dumps.

Takes seconds, same bytes every time.

Part of `python -m tasks.demo.build`. The rows are Alpaca rows (`instruction`, `input`, `output`) plus the
task `category` and the `database` to run them on.
"""

import json
import random
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from tasks.demo.requests import (
    CATEGORY_OF_FAMILY,
    combinations,
    phrase,
    sample_request,
)
from tasks.demo.schemas import DATABASES, Database, dump_sql, schema_text
from tasks.demo.styles import render_sql, sample_style

DATA = Path(__file__).parent / "data"
SEED_ROWS = 200
HELD_OUT_ROWS = 640

DemoRow = dict[str, str]


def sample_row(database: Database, table_name: str, family: str, rng: random.Random) -> DemoRow:
    """One correct row of a pairing, phrased and written at random."""
    request = sample_request(database, database.table(table_name), family, rng)
    return {
        "instruction": phrase(request, database, rng),
        "input": schema_text(database),
        "output": render_sql(request, database, sample_style(rng)),
        "category": CATEGORY_OF_FAMILY[family],
        "database": database.name,
    }


def rows_of_split(*, held_out: bool, rng: random.Random) -> Iterator[DemoRow]:
    """Endless rows, round after round over every pairing of the split in random order."""
    pairings = combinations(held_out=held_out)
    for _ in cycle((None,)):
        rng.shuffle(pairings)
        for database, table, family in pairings:
            yield sample_row(database, table.name, family, rng)


def distinct_rows(count: int, *, held_out: bool, seed: str) -> list[DemoRow]:
    """The first `count` rows with different requests."""
    seen: dict[tuple[str, str], DemoRow] = {}
    for row in rows_of_split(held_out=held_out, rng=random.Random(seed)):
        seen.setdefault((row["instruction"], row["database"]), row)
        if len(seen) == count:
            break
    return list(seen.values())


def _write_jsonl(path: Path, rows: list[DemoRow]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_data(folder: Path = DATA) -> None:
    """Write seeds.jsonl, heldout.jsonl and databases/ under `folder`."""
    (folder / "databases").mkdir(parents=True, exist_ok=True)
    _write_jsonl(folder / "seeds.jsonl", distinct_rows(SEED_ROWS, held_out=False, seed="seeds"))
    _write_jsonl(folder / "heldout.jsonl", distinct_rows(HELD_OUT_ROWS, held_out=True, seed="heldout"))
    for database in DATABASES:
        (folder / "databases" / f"{database.name}.sql").write_text(dump_sql(database))
