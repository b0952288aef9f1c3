"""`python -m tests.bench NAME`: runs a benchmark and prints one JSON line last."""

import importlib
import json
import signal
import sys
from pathlib import Path


def main() -> None:
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        sys.exit(f"usage: python -m tests.bench {{{','.join(names)}}} [options]")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwind, so that what runs below us ends too
    print(json.dumps(importlib.import_module(f"tests.bench.{sys.argv[1]}").run(sys.argv[2:])))


if __name__ == "__main__":
    main()
