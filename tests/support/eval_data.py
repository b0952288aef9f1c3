"""What benchmarks need and a machine without network lacks: a task of lm-eval's kind, and Punkt's data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

QUESTIONS = [
    {
        "question": question,
        "choices": [" SELECT name FROM employees", " zebra the of and", " 7 7 7 7"],
        "answer": place % 3,
    }
    for place, question in enumerate(
        ["List all names", "Which zebra?", "Count to seven", "Show employees", "And?", "Or?"]
    )
]


def own_task(folder: Path) -> Path:
    """A folder with the task `own_choice`: six questions of three choices."""
    documents = folder / "documents.jsonl"
    documents.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    own = folder / "own"
    own.mkdir()
    task: dict[str, Any] = {
        "task": "own_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(documents)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    (own / "own_choice.yaml").write_text(yaml.safe_dump(task))
    return own


def wait_after(folder: Path, models: int, released: Path) -> None:
    """Let the task `own_choice` wait with its results after so many models, until a file is there."""
    calls = folder.parent / "calls"
    (folder / "waiting.py").write_text(
        "import pathlib, time\n"
        "def mean(scores):\n"
        f"    with open({str(calls)!r}, 'a+') as calls:\n"
        "        calls.write('.')\n"
        f"        late = calls.tell() > {models}\n"
        f"    while late and not pathlib.Path({str(released)!r}).exists():\n"
        "        time.sleep(0.05)\n"
        "    return sum(scores) / len(scores)\n"
    )
    task = folder / "own_choice.yaml"
    task.write_text(task.read_text().replace("aggregation: mean", "aggregation: !function waiting.mean"))


def small_punkt(folder: Path) -> Path:
    """A folder for NLTK_DATA with a Punkt model that knows two abbreviations: the tokenizer itself is NLTK's."""
    place = folder / "tokenizers" / "punkt_tab" / "english"
    place.mkdir(parents=True)
    for name, text in {
        "abbrev_types.txt": "dr\nmr",
        "collocations.tab": "",
        "ortho_context.tab": "",
        "sent_starters.txt": "",
    }.items():
        (place / name).write_text(text)
    return folder
