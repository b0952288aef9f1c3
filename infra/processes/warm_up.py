"""Builds what engines would otherwise build on their first use: DeepSpeed's shared-memory communication on CPUs.

`python -m infra.processes.warm_up`, part of `make setup`. Without a C++ compiler DeepSpeed communicates through gloo
alone, which works and is slower.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil

from infra import settings
from infra.processes.torch_extensions import build_once


def main() -> None:
    if not shutil.which("g++"):
        print("No C++ compiler (g++) found: DeepSpeed will communicate through gloo alone.")
        return
    logging.disable(logging.WARNING)
    os.environ["TORCH_EXTENSIONS_DIR"] = settings.torch_extensions_dir()
    with contextlib.redirect_stdout(io.StringIO()):
        import torch

        if torch.cuda.is_available():
            return
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        build_once()
        ShareMemCommBuilder().load(verbose=False)


if __name__ == "__main__":
    main()
