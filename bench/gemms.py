"""The bare GEMMs of a head, which nobody can do without, and how long they would take."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

import fastdistill as fd
from fastdistill._chunks import plan_chunks
from fastdistill._head import Head, HeadDtypes, Precision, choose_precision
from fastdistill._native import fresh

from .cases import Case
from .inputs import Inputs
from .provider import Provider, Result, Runner


def head_dtype(case: Case) -> torch.dtype:
    """The dtype in which fastdistill multiplies the head of a case on this machine."""
    weight = torch.empty(0, dtype=case.dtype)
    return choose_precision(weight, HeadDtypes(None, None)).operand


def our_chunk(case: Case) -> int:
    """The rows per chunk that fastdistill uses for a case."""
    plan = plan_chunks(
        case.counted, case.vocab, case.student_width, head_dtype(case), torch.device("cpu"),
        teacher_is_made=case.kind == "linear", chunk_size=case.chunk_size,
    )  # fmt: skip
    return plan.chunk


# ---- as a provider ----------------------------------------------------------------------------


class _Operands(NamedTuple):
    """Of the counted rows; the teacher's only where it is a head."""

    hidden: Tensor
    weight: Tensor
    teacher: tuple[Tensor, Tensor] | None
    grad_hidden: Tensor
    grad_weight: Tensor


def _operands(inputs: Inputs, dtype: torch.dtype) -> _Operands:
    """Ready operands and results, one set for all GEMMs of a dtype: large heads fill a machine."""
    if dtype not in inputs.shared:
        rows = inputs.tokens.get("mask", slice(None))
        hidden, weight = (leaf.detach().to(dtype) for leaf in inputs.leaves.values())
        hidden, teacher, head = hidden[rows], None, inputs.teacher
        if isinstance(head, fd.TeacherHead):
            teacher = head.hidden[rows].to(dtype), head.weight.to(dtype)
        results = torch.empty_like(hidden), torch.zeros_like(weight)
        inputs.shared[dtype] = _Operands(hidden, weight, teacher, *results)
    operands: _Operands = inputs.shared[dtype]
    return operands


def _build_gemms(case: Case, inputs: Inputs, *, in_chunks: bool, native: bool) -> Runner:
    """The GEMMs of a case, on operands and in buffers that are ready beforehand.

    Those of the logits as fastdistill cuts them where the rows are cut as well.
    """
    dtype = case.dtype if native else head_dtype(case)
    hidden, weight, teacher, grad_hidden, grad_weight = _operands(inputs, dtype)
    chunk = our_chunk(case) if in_chunks else case.counted
    logits, teacher_logits = (fresh(hidden, chunk, case.vocab) for _ in range(2))

    def make_logits(hidden: Tensor, weight: Tensor, out: Tensor) -> None:
        if in_chunks:
            Head(weight, None, case.vocab, Precision(dtype, dtype, dtype)).logits(hidden, out)
        else:
            torch.mm(hidden, weight.t(), out=out)

    def run() -> Result:
        for start in range(0, case.counted, chunk):
            rows = slice(start, start + chunk)
            own = logits[: hidden[rows].shape[0]]
            make_logits(hidden[rows], weight, own)
            if teacher:
                make_logits(teacher[0][rows], teacher[1], teacher_logits[: own.shape[0]])
            if case.backward:
                torch.mm(own, weight, out=grad_hidden[rows])
                torch.addmm(
                    grad_weight, own.t(), hidden[rows], beta=int(start > 0), out=grad_weight
                )
        return ()

    return run


def _applies(case: Case, *, native: bool) -> bool:
    """The dtype of the case is of interest where the head uses another."""
    return case.has_head and not (native and head_dtype(case) == case.dtype)


def _gemms(name: str, *, in_chunks: bool, native: bool) -> Provider:
    return Provider(
        f"bare GEMMs, {name}",
        functools.partial(_build_gemms, in_chunks=in_chunks, native=native),
        role="limit",
        applies=functools.partial(_applies, native=native),
        native_gemms=native,
    )


GEMMS = (
    _gemms("our chunks", in_chunks=True, native=False),
    _gemms("one piece", in_chunks=False, native=False),
    _gemms("our chunks, torch's dtype", in_chunks=True, native=True),
    _gemms("one piece, torch's dtype", in_chunks=False, native=True),
)
GEMM_LIMIT = GEMMS[0].name
"""The provider that the losses of heads are compared with."""

# ---- prediction -------------------------------------------------------------------------------


def median_seconds(run: Callable[[], object], repeats: int = 7) -> float:
    """Median time of a run, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times[1:])


@functools.cache
def _gemm_rates(dtype: torch.dtype) -> tuple[float, float, float]:
    """flop/s of small GEMMs as in a head: logits, gradient by hidden, gradient by weight."""
    rows, width, vocab = 128, 256, 2048
    hidden, weight, logits = (
        torch.ones(shape, dtype=dtype) for shape in ((rows, width), (vocab, width), (rows, vocab))
    )
    runs = (lambda: hidden @ weight.t(), lambda: logits @ weight, lambda: logits.t() @ hidden)
    by_logits, by_hidden, by_weight = (
        2 * rows * width * vocab / median_seconds(run, repeats=2) for run in runs
    )
    return by_logits, by_hidden, by_weight


def predicted_gemm_seconds(case: Case, provider: Provider) -> float:
    """What the GEMMs of a case take, extrapolated from small ones; 0 where there are none."""
    if not case.has_head:
        return 0.0
    rates = _gemm_rates(case.dtype if provider.native_gemms else head_dtype(case))
    return sum(
        2 * case.counted * case.vocab * width / rate
        for width, rate in zip(case.gemm_widths, rates, strict=True)
    )
