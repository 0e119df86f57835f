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


class _Side(NamedTuple):
    """Operands that make logits, of the counted rows."""

    hidden: Tensor
    weight: Tensor


def _sides(inputs: Inputs, rows: torch.dtype, weights: torch.dtype) -> list[_Side]:
    """The student, then the teacher if it is a head; one set for all, as large ones fill memory."""
    if (rows, weights) not in inputs.shared:
        counted = inputs.tokens.get("mask", slice(None))
        sides = [_Side(*(leaf.detach() for leaf in inputs.leaves.values()))]
        if isinstance(inputs.teacher, fd.TeacherHead):
            sides.append(_Side(inputs.teacher.hidden, inputs.teacher.weight))
        inputs.shared[rows, weights] = [
            _Side(hidden[counted].to(rows), weight.to(weights)) for hidden, weight in sides
        ]
    ready: list[_Side] = inputs.shared[rows, weights]
    return ready


def _build_gemms(case: Case, inputs: Inputs, *, in_chunks: bool, native: bool) -> Runner:
    """The GEMMs of a case, whose logits go to memory that is ready beforehand.

    In chunks they are cut as fastdistill cuts them, and weights are widened where it widens them.
    In one piece all operands are ready.
    """
    dtype = case.dtype if native else head_dtype(case)
    sides = _sides(inputs, dtype, case.dtype if in_chunks else dtype)
    precision = Precision(sides[0].weight.dtype, dtype, dtype)
    chunk = our_chunk(case) if in_chunks else case.counted
    buffers = [fresh(side.hidden, chunk, case.vocab) for side in sides]
    leaves = zip(sides[0], inputs.leaves.values(), strict=True)
    wanted = [side for side, leaf in leaves if case.backward and leaf.requires_grad]

    def run() -> Result:
        gradients = [fresh(side, *side.shape, dtype=dtype) for side in wanted]
        heads = [Head(side.weight, None, case.vocab, precision) for side in sides]
        for start in range(0, case.counted, chunk):
            rows = slice(start, min(start + chunk, case.counted))
            logits = [buffer[: rows.stop - start] for buffer in buffers]
            for head, side, out in zip(heads, sides, logits, strict=True):
                if in_chunks:
                    head.logits(side.hidden[rows], out)
                else:
                    torch.mm(side.hidden[rows], side.weight.t(), out=out)
            if case.backward:
                gradients[0][rows] = heads[0].grad_hidden(logits[0])
            if case.backward and not case.frozen:
                own, by_weight = sides[0].hidden[rows], gradients[1]
                torch.addmm(by_weight, logits[0].t(), own, beta=int(start > 0), out=by_weight)
        return tuple(gradients)

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
