"""The bench for the first hour on a GPU goes its whole way, which on a machine without one says nothing of speed."""

import json
import subprocess
import sys
from pathlib import Path


def test_every_part_of_the_gpu_bench_works_without_one() -> None:
    words = [sys.executable, "-m", "tests.bench", "gpu", "--tiny"]
    ran = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=250)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["left_out"] == {}
    precision = found["precision"]
    assert precision["largest_difference_nats"] < 0.01 < precision["first_loss"] - precision["last_loss"]
