"""A model on reference responses, teacher-forced: its logits, a batch of rows at a time, and what it makes of each.

T tokens of a row, V vocabulary, B rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from infra import memory
from tasks.engines.device import capability, dtype_here
from tasks.engines.quantised import check_device, check_transformers
from tasks.engines.scoring import attention_of
from tasks.evaluate.heldout.groups import LOGITS, POSITIONS_AT_ONCE
from tasks.evaluate.heldout.metrics import CALIBRATION_BINS, calibration, response_logprobs, response_nll
from tasks.models import ModelSource
from tasks.precision import BYTES, Dtype, dtype_of
from tasks.tokens.rows import TokenisedRow
from tasks.tokens.scored import ScoredRow

R = TypeVar("R", TokenisedRow, ScoredRow)
_BF16 = "evaluation.dtype=bfloat16"
_FLOATS = {"F64", "F32", "F16", "BF16"}


def load_model(source: ModelSource, asked: Dtype = "auto") -> Any:
    """The model for inference, on the GPU where there is one, its layers over all GPUs where there are several.

    Raises ConfigurationError for a dtype that the GPU has not, and for a quantised model that cannot be loaded here.
    """
    on_gpu, config = torch.cuda.is_available(), source.json_file("config.json")
    check_device(source.name, config, on_gpu=on_gpu)
    check_transformers(source.name, config, "evaluation", "set evaluation.teacher=topk")
    where = {"device_map": "auto"} if torch.cuda.device_count() > 1 else {}
    dtype = dtype_here(asked, config, _BF16)
    folder = source.fetch()
    where |= attention_of(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=dtype, **where)
    return (model if "device_map" in where else model.to("cuda" if on_gpu else "cpu")).eval()


def loaded_bytes(source: ModelSource, asked: Dtype = "auto") -> int:
    """What the model's weights take once they are loaded: what is no plain float (quantised) as it is stored."""
    return sum(_loaded_bytes(path, width(asked)) for path in source.fetch().glob("*.safetensors"))


def free_bytes() -> int:
    """Memory that is free where models are loaded: on all GPUs together, else of this machine."""
    devices = range(torch.cuda.device_count())
    return sum(torch.cuda.mem_get_info(device)[0] for device in devices) or memory.free()


def width(asked: Dtype = "auto") -> int:
    """Bytes of a weight, and of a logit, at work."""
    return BYTES[dtype_of(asked, capability(), _BF16)]


def vocabulary_size(model: Any) -> int:
    size: int = model.config.get_text_config().vocab_size
    return size


def batches(rows: Iterable[R], at_most: int, vocabulary: int) -> Iterator[list[R]]:
    """Neighbours, `at_most` rows of them, and so many that their padded logits fit (or one longer row)."""
    batch: list[R] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row.ids))
        if batch and (len(batch) == at_most or (len(batch) + 1) * longest * vocabulary > LOGITS):
            yield batch
            batch, longest = [], len(row.ids)
        batch.append(row)
    if batch:
        yield batch


@torch.inference_mode()
def logits_of(model: Any, rows: Sequence[TokenisedRow]) -> Tensor:
    """Logits of rows, padded on the right: (B, T, V)."""
    longest = max(len(row.ids) for row in rows)
    ids_BT = torch.zeros((len(rows), longest), dtype=torch.long, device=model.device)
    mask_BT = torch.zeros_like(ids_BT)
    for b, row in enumerate(rows):
        ids_BT[b, : len(row.ids)] = torch.tensor(row.ids)
        mask_BT[b, : len(row.ids)] = 1
    logits_BTV: Tensor = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    return logits_BTV


@torch.inference_mode()
def loss_and_calibration(row: TokenisedRow, logits_TV: Tensor) -> tuple[float, list[list[float]]]:
    """−log p of the response in nats, and its tokens by confidence, (3, C) as in `metrics`."""
    start, length = row.response_start, len(row.ids)
    ids_T = torch.tensor(row.ids, device=logits_TV.device)
    nll = 0.0
    counted = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64, device=logits_TV.device)
    for first in range(start, length, POSITIONS_AT_ONCE):
        last = min(first + POSITIONS_AT_ONCE, length)
        logprobs_RV, labels_R = response_logprobs(logits_TV, first, last), ids_T[first:last]
        nll += float(response_nll(logprobs_RV, labels_R).sum())
        counted += calibration(logprobs_RV, labels_R)
    return nll, counted.tolist()


def _loaded_bytes(path: Path, width: int) -> int:
    """Of a safetensors file, from its header alone, with `width` bytes a float."""
    with path.open("rb") as weights:
        header = json.loads(weights.read(int.from_bytes(weights.read(8), "little")))
    parts = [part for name, part in header.items() if name != "__metadata__"]
    stored = sum(end - begin for begin, end in (part["data_offsets"] for part in parts if part["dtype"] not in _FLOATS))
    return stored + width * sum(math.prod(part["shape"]) for part in parts if part["dtype"] in _FLOATS)
