"""The fused LM head and KD loss beside the bare matrix products, and beside full logits: time and memory.

    python -m tests.bench kd_loss [--rounds 7] [--tokens 2048] [--hidden 896] [--vocabulary 151936] [--k 10]

fp32, half of the positions supervised. `matmul_floor_s` is the LM head's three products (logits, and the gradients
of hidden states and weight) for the supervised positions alone, written to memory that is there already: what any
exact method has to pay. `fused_s` is forward and backward, into gradients that are allocated. `full_logits_s` is
what one writes first: logits of all positions, the loss on those that are supervised, autograd.

All run with the allocator's settings of a training (`KEPT_PAGES`). Floor and fused run in turn, because the machine
is shared (full logits twice, after them). `ratio_to_floor` is the median over rounds of fused over the mean of the
floors just before and after; the seconds are medians; each round goes to stderr.
`peak_extra_mib_*` is the peak of resident memory (VmHWM) above what was resident before and the gradients, each
in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.train.launch.nodes import KEPT_PAGES
from tasks.train.model.fused_head import fused_head_loss
from tasks.train.model.losses import DistillationLoss

_SCALE = 1 / 1024  # as the loop does: a sum, over the supervised tokens of the global batch


@dataclass(frozen=True)
class Case:
    hidden_TH: Tensor
    weight_VH: Tensor
    supervised_T: Tensor
    labels_N: Tensor
    teacher_ids_NK: Tensor
    teacher_logprobs_NK: Tensor


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="kd_loss")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--peak-of", choices=sorted(_WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not KEPT_PAGES.keys() <= os.environ.keys():  # glibc reads them when a process starts
        os.execve(sys.executable, [sys.executable, "-m", "tests.bench", "kd_loss", *arguments], os.environ | KEPT_PAGES)
    shape = (options.tokens, options.hidden, options.vocabulary, options.k)
    if options.peak_of:
        return {"mib": _peak_extra_mib(_WAYS[options.peak_of], shape)}
    peaks = {f"peak_extra_mib_{name}": _in_own_process(name, arguments) for name in ("fused", "full")}
    case = _case(*shape)
    _check_equal(case)
    floor = _floor(case)
    floors, fused = [_seconds(floor)], []
    for _ in range(options.rounds):
        fused.append(_seconds(lambda: _fused(case)))
        floors.append(_seconds(floor))
        print(f"floor {floors[-2]:.2f} fused {fused[-1]:.2f} floor {floors[-1]:.2f}", file=sys.stderr, flush=True)
    full = [_seconds(lambda: _full(case)) for _ in range(2)]  # apart: what it frees makes the next one slow
    ratios = [2 * own / (before + after) for own, before, after in zip(fused, floors[:-1], floors[1:], strict=True)]
    return {
        "fused_s": round(statistics.median(fused), 3),
        "full_logits_s": round(statistics.median(full), 3),
        "matmul_floor_s": round(statistics.median(floors), 3),
        "ratio_to_floor": round(statistics.median(ratios), 3),
        **peaks,
    }


def _case(tokens: int, hidden: int, vocabulary: int, k: int) -> Case:
    torch.manual_seed(0)
    supervised_T = torch.arange(tokens) >= tokens // 2  # a prompt, then a response
    rows = int(supervised_T.sum())
    return Case(
        hidden_TH=torch.randn(tokens, hidden).requires_grad_(),
        weight_VH=torch.randn(vocabulary, hidden).mul_(0.02).requires_grad_(),
        supervised_T=supervised_T,
        labels_N=torch.randint(0, vocabulary, (rows,)),
        teacher_ids_NK=torch.randint(0, vocabulary, (rows, k)),
        teacher_logprobs_NK=torch.randn(rows, k).log_softmax(dim=1),
    )


def _fused(case: Case) -> Tensor:
    case.hidden_TH.grad = case.weight_VH.grad = None
    hidden_NH = case.hidden_TH[case.supervised_T]
    loss = fused_head_loss(
        hidden_NH,
        case.weight_VH,
        None,
        case.labels_N,
        case.teacher_ids_NK,
        case.teacher_logprobs_NK,
        DistillationLoss(),
    )
    (loss * _SCALE).backward()
    return loss.detach()


def _full(case: Case) -> Tensor:
    case.hidden_TH.grad = case.weight_VH.grad = None
    logits_TV = case.hidden_TH @ case.weight_VH.t()
    labels_T = torch.full((len(logits_TV),), -100)
    labels_T[case.supervised_T] = case.labels_N
    cross_entropy = F.cross_entropy(logits_TV, labels_T, reduction="sum")
    student_NK = logits_TV[case.supervised_T].gather(1, case.teacher_ids_NK)
    kl = F.kl_div(
        student_NK.log_softmax(dim=1), case.teacher_logprobs_NK.log_softmax(dim=1), log_target=True, reduction="sum"
    )
    loss = 0.5 * cross_entropy + 0.5 * kl
    (loss * _SCALE).backward()
    return loss.detach()


_WAYS: dict[str, Callable[[Case], Tensor]] = {"fused": _fused, "full": _full}


def _floor(case: Case) -> Callable[[], None]:
    """The products alone, on memory that has been touched."""
    hidden_NH, weight_VH = case.hidden_TH.detach()[case.supervised_T], case.weight_VH.detach()
    logits_NV = torch.zeros(len(hidden_NH), len(weight_VH))
    d_hidden_NH, d_weight_VH = torch.zeros_like(hidden_NH), torch.zeros_like(weight_VH)

    def products() -> None:
        torch.mm(hidden_NH, weight_VH.t(), out=logits_NV)
        torch.mm(logits_NV, weight_VH, out=d_hidden_NH)
        torch.mm(logits_NV.t(), hidden_NH, out=d_weight_VH)

    return products


def _check_equal(case: Case) -> None:
    """Warms up, and makes sure that both ways compute the same: value and gradients."""
    results = []
    for way in _WAYS.values():
        value = way(case)
        assert case.hidden_TH.grad is not None
        assert case.weight_VH.grad is not None
        results.append((value, case.hidden_TH.grad, case.weight_VH.grad))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-6)


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _in_own_process(way: str, arguments: list[str]) -> float:
    command = [sys.executable, "-m", "tests.bench", "kd_loss", *arguments, "--peak-of", way]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    return json.loads(ran.stdout.splitlines()[-1])["mib"]


def _peak_extra_mib(way: Callable[[Case], Tensor], shape: tuple[int, int, int, int]) -> float:
    way(_case(8, 8, 64, 4))  # libraries and threads that the first call of anything brings in
    case = _case(*shape)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
    before = _resident_mib("VmRSS")
    way(case)
    gradients = (case.hidden_TH.numel() + case.weight_VH.numel()) * 4 / 2**20
    return round(_resident_mib("VmHWM") - before - gradients, 1)


def _resident_mib(field: str) -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024
