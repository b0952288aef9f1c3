"""Scoring by a vLLM that runs elsewhere: the teacher is there, and only its tokenizer and config are here.

`connect` finds out whether that server can score for this teacher; `ServerEngine` has it score, several rows at once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.errors import ConfigurationError
from tasks.engines.vllm_server import RefusedError, VLLMServer
from tasks.models import ModelSource, load_tokenizer
from tasks.tokens.rows import TokenisedRow
from tasks.tokens.scored import ScoredRow

_AT_ONCE = 64  # rows; their tokens are bounded by who calls `score`, and so are the bytes of all answers
_FLOOR = -9999.0  # that vLLM writes for −inf, which JSON has not
_PROBE = "In 2024, 3 of 17 flights were late; été, Größe, 多少, сколько? SELECT name FROM t;\n\n\tx = 0.5"
_ROUNDING = 1e-2  # of a sum of probabilities in bf16


@dataclass(frozen=True)
class ServedModel:
    """A model as a server calls it."""

    server: VLLMServer
    name: str


def connect(
    address: str, name: str | None, teacher: ModelSource, k: int, longest: int, *, patient: bool = True
) -> ServedModel:
    """The teacher on that server, which calls it `name`, or by its own name, or serves it alone.

    Raises ConfigurationError for all that would fail later, of which a short prompt is the proof: another model or
    tokenizer, fewer log-probs than `k`, a context below `longest` tokens and the one that is generated, no log-probs
    of prompts, a key that is missing. TransientError where nobody answers.
    """
    server = VLLMServer(address, patient=patient)
    model = _chosen(server, name, teacher)
    served, room = str(model["id"]), model.get("max_model_len")
    if room is not None and room < longest + 1:
        raise ConfigurationError(
            f"{server.where} takes {room:,} tokens, and rows have up to {longest:,}: start it with "
            f"`--max-model-len {longest + 1}`, or lower max_length of scoring (and of evaluation)"
        )
    tokenizer = load_tokenizer(teacher)
    text = _PROBE + "".join(tokenizer.all_special_tokens)
    ids = tokenizer.encode(text, add_special_tokens=False)
    if (theirs := server.tokenized(served, text)) is not None and theirs != ids:
        raise ConfigurationError(
            f"{server.where} has another tokenizer for {served!r} than the teacher {teacher.name!r}: "
            "serve the teacher, or name the model that is served as the teacher"
        )
    _check_logprobs(server, served, ids, k, len(tokenizer))
    return ServedModel(server, served)


class ServerEngine:
    """The `Engine` of a served model."""

    def __init__(self, model: ServedModel):
        self._model = model
        self._reading = threading.Lock()  # one answer at a time is held as Python's objects

    def score(self, rows: Sequence[TokenisedRow], k: int) -> list[ScoredRow]:
        pool = ThreadPoolExecutor(min(_AT_ONCE, len(rows)))
        try:
            return list(pool.map(lambda row: self._scored(row, k), rows))
        finally:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        self._model.server.close()

    def _scored(self, row: TokenisedRow, k: int) -> ScoredRow:
        answer = self._model.server.prompt_logprobs(self._model.name, list(row.ids), k)
        with self._reading:
            return _read(row, answer, k)


def _read(row: TokenisedRow, answer: Sequence[Mapping[str, Any] | None], k: int) -> ScoredRow:
    """Position i describes token i: a log-prob by id for the K best, and one for the token itself where it is none."""
    places_R = row.places_R
    actual_R = np.empty(len(places_R), np.float32)
    ids_RK = np.empty((len(places_R), k), np.int32)
    logprobs_RK = np.empty((len(places_R), k), np.float32)
    for r, place in enumerate(places_R):
        told = answer[place] or {}
        best = sorted((one["rank"], int(token), one["logprob"]) for token, one in told.items() if one["rank"] <= k)
        if len(best) != k or (own := told.get(str(row.ids[place]))) is None:
            raise ConfigurationError(f"the server scored other tokens than those of row {row.row_id}")
        actual_R[r] = own["logprob"]
        _ranks, ids_RK[r], logprobs_RK[r] = zip(*best, strict=True)
    for logprobs in (actual_R, logprobs_RK):
        logprobs[logprobs <= _FLOOR] = -np.inf
    return ScoredRow(row.row_id, row.ids, row.response_start, actual_R, ids_RK, logprobs_RK, earlier=row.earlier)


def _chosen(server: VLLMServer, name: str | None, teacher: ModelSource) -> dict[str, Any]:
    listed = [model for model in server.models() if name or not model.get("parent")]  # an adapter is no teacher
    wanted = [name] if name else [known for known in (teacher.name, teacher.hub, teacher.path) if known]
    for field in ("id", "root"):
        for model in listed:
            if model.get(field) in wanted:
                return model
    if name is None and len(listed) == 1 and not (teacher.hub and _is_on_hub(listed[0].get("root"))):
        return listed[0]
    served = ", ".join(f"{model['id']!r}" for model in listed) or "nothing"
    raise ConfigurationError(
        f"{server.where} serves {served}, and not {wanted[0]!r}: set scoring.server_model to what it calls the teacher"
    )


def _is_on_hub(root: str | None) -> bool:
    """Whether weights are named as the hub names them, and not by a folder."""
    return bool(root) and str(root).count("/") == 1 and not str(root).startswith(("/", ".", "~"))


def _check_logprobs(server: VLLMServer, model: str, ids: list[int], k: int, vocabulary: int) -> None:
    """Of a short prompt: the top K are log-probs, of which the probabilities sum to at most 1 and at least K/V."""
    try:
        answer = server.prompt_logprobs(model, ids, k)
    except RefusedError as error:
        if "prompt logprobs" in error.said.lower() or "prompt_logprobs" in error.said:
            raise ConfigurationError(
                f"{server.where} gives fewer log-probs of a token than k = {k}: start it with "
                f"`vllm serve … --max-logprobs {k}`, or lower k ({error.said})"
            ) from error
        raise
    row = _read(TokenisedRow("of the probe", ids, 1), answer, k)
    mass_R = np.exp(row.logprobs_RK.astype(np.float64)).sum(axis=1)
    if (row.logprobs_RK > _ROUNDING).any() or not ((mass_R < 1 + _ROUNDING) & (mass_R > k / vocabulary / 2)).all():
        raise ConfigurationError(
            f"{server.where} gives no log-probabilities (those of a token sum to {mass_R.max():.3g}): "
            "start it with `--logprobs-mode raw_logprobs`"
        )
