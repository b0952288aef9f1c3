"""Environment of the processes that start vLLM."""

from __future__ import annotations

import os


def vllm_environment() -> dict[str, str]:
    """Quiet, without usage statistics, and with a CPU cache of 1 GiB where the user sets no other."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "TOKENIZERS_PARALLELISM": "false",
    }
