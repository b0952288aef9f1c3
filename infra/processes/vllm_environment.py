"""Environment of the processes that start vLLM."""

from __future__ import annotations

import os

from infra.devices import gpus


def vllm_environment() -> dict[str, str]:
    """Quiet, without usage statistics; what the user sets stays.

    Without a GPU the engine runs in the process that asks for it, and nothing is compiled: vLLM would start three
    Python processes one after the other (45 s instead of 15 s on two cores) and score no faster. An engine may take
    longer to start than vLLM's 10 minutes: 145 GB of weights at 200 MB/s take 12. One that hangs is ended by
    `infra.processes.supervise`.
    """
    chosen = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}  # GiB
    chosen |= {"VLLM_ENGINE_READY_TIMEOUT_S": str(24 * 3600)}
    if not gpus():
        chosen |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1"}
    fixed = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {name: os.environ.get(name, value) for name, value in chosen.items()} | fixed
