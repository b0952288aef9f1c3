"""Rebuild everything the demo ships, from seeds only: `python -m tasks.demo.build [--data-only] [--models NAME …]
[--out FOLDER]`.

Writes seeds, held-out rows and database dumps (under a second), then the tokenizer, the base students (about
a minute each) and the teachers (about fifteen minutes for the largest, longer on a busy machine), on one CPU
thread. The data files are the same bytes everywhere; weights agree between machines up to floating-point order.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from tasks.demo.build_data import DATA, HELD_OUT_ROWS, distinct_rows, write_data
from tasks.demo.build_models import STUDENTS, TEACHERS, save_model, train_base_student, train_teacher
from tasks.demo.tokenizer import train_tokenizer
from tasks.demo.training import execution_accuracy


def build_models(folder: Path, names: Sequence[str] = (*STUDENTS, *TEACHERS)) -> None:
    """Train and write the models under `folder`, and print their held-out execution accuracy."""
    # One thread makes a rebuild repeatable, and leaves the other cores alone.
    torch.set_num_threads(1)
    tokenizer = train_tokenizer()
    held_out = distinct_rows(HELD_OUT_ROWS, held_out=True, seed="heldout")
    for name in names:
        print(f"training the demo {name}", flush=True)
        model = train_base_student(tokenizer, name) if name in STUDENTS else train_teacher(tokenizer, name)
        print(f"{name}: held-out execution accuracy {execution_accuracy(model, tokenizer, held_out):.1%}")
        save_model(model, tokenizer, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rebuild the demo's data and models.")
    parser.add_argument("--data-only", action="store_true", help="write rows and databases, keep the models")
    parser.add_argument("--models", nargs="+", choices=(*STUDENTS, *TEACHERS), default=(*STUDENTS, *TEACHERS))
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write to")
    arguments = parser.parse_args()
    write_data(arguments.out)
    if not arguments.data_only:
        build_models(arguments.out, arguments.models)


if __name__ == "__main__":
    main()
