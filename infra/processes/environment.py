"""What each kind of child process is told of our environment: what it needs, and no secret that is for another.

A run's own environment holds the keys of its LLM providers, of storage and of the Prefect server. Engines execute other
people's kernels, models' files and data: they are told storage's keys and no others. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

PASS = "DISTILFLOW_PASS"
NOTIFY = "DISTILFLOW_NOTIFY_URL"  # an address that lets whoever knows it write to people

_PROGRAM = """
    PATH HOME USER LOGNAME SHELL LANG LANGUAGE LC_* TZ TERM COLUMNS PWD TMPDIR TEMP TMP HOSTNAME NO_COLOR XDG_*
    LD_* DYLD_* GLIBC_* MALLOC_* PYTHON* VIRTUAL_ENV CONDA_* COVERAGE_* DO_NOT_TRACK
    *_PROXY *_proxy SSL_CERT_* REQUESTS_CA_BUNDLE CURL_CA_BUNDLE KRB5* DISTILFLOW_*
"""
_STORAGE = "AWS_*"
_ENGINE = """
    CUDA_* CUDNN_* CUBLAS* NVIDIA_* NV_* NVTE_* NVCC_* NCCL_* NVSHMEM_* GLOO_* HIP_* ROCM_* ROCR_* HSA_* AMD_* GPU_*
    MIOPEN_* RCCL_* ZE_* ONEAPI_* CCL_* XPU_* HABANA_* ASCEND_* HCCL_* OMP_* KMP_* GOMP_* MKL_* OPENBLAS_* NUMEXPR_*
    TORCH* PYTORCH_* TRITON_* INDUCTOR_* DS_* DEEPSPEED_* VLLM_* FLASH* XFORMERS_* LMCACHE_* RAY_*
    HF_* HUGGINGFACE_* HUGGING_FACE_* TRANSFORMERS_* TOKENIZERS_* SAFETENSORS_* DATASETS_* NLTK_* TIKTOKEN_*
    RANK WORLD_SIZE LOCAL_* NODE_RANK GROUP_* MASTER_* PET_* PDSH_* I_MPI_* SLURM_* PMI_* PMIX_* OMPI_* MPI_*
    UCX_* FI_* RDMAV_* IBV_* MLX5_* EFA_* CC CXX CFLAGS CXXFLAGS LDFLAGS CPATH C_INCLUDE_PATH LIBRARY_PATH MAX_JOBS
"""
_OF_AWS = ("bedrock", "sagemaker")  # as LiteLLM calls models whose keys are those of AWS


def for_server(*more: str) -> dict[str, str]:
    """For a program that this product starts and that needs nothing of ours; `more` are patterns of names."""
    return _told([*_PROGRAM.split(), *more])


def for_engine() -> dict[str, str]:
    """For training, scoring and evaluation: devices, libraries, the hub, storage, and what DISTILFLOW_PASS names."""
    own = os.environ.get(PASS, "").replace(",", " ").split()
    return _told([*_PROGRAM.split(), *_ENGINE.split(), _STORAGE, *own])


def for_provider(models: Iterable[str]) -> dict[str, str]:
    """For LiteLLM, which knows a hundred providers' variables: ours, but for what is known to be for another."""
    others = [NOTIFY, "PREFECT_*"]
    if not any(model.startswith(_OF_AWS) for model in models):
        others.append(_STORAGE)
    left_out = _pattern(others)
    return {name: value for name, value in os.environ.items() if not left_out.fullmatch(name)}


def for_flow() -> dict[str, str]:
    """For a worker, whose runs ask providers, storage and the Prefect server themselves."""
    return {name: value for name, value in os.environ.items() if name != NOTIFY}


def _told(names: list[str]) -> dict[str, str]:
    known = _pattern(names)
    return {name: value for name, value in os.environ.items() if known.fullmatch(name) and name != NOTIFY}


def _pattern(names: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(name).replace(r"\*", r"\w*") for name in names))
