"""What the machine can do at best, measured in the same run: bare GEMMs, memory, exponentials."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

import fastdistill as fd
from fastdistill._chunks import plan_chunks
from fastdistill._head import HeadDtypes, choose_precision
from fastdistill._native import fresh

from .cases import Case, Inputs
from .provider import Provider, Result, Runner

# ---- bare GEMMs -------------------------------------------------------------------------------


def head_dtype(case: Case) -> torch.dtype:
    """The dtype in which fastdistill multiplies the head of a linear case on this machine."""
    weight = torch.empty(0, dtype=case.dtype)
    return choose_precision(weight, HeadDtypes(None, None)).operand


def our_chunk(case: Case) -> int:
    """The rows per chunk that fastdistill chooses for a linear case."""
    plan = plan_chunks(
        case.rows, case.vocab, case.student_width, head_dtype(case), torch.device("cpu"),
        teacher_is_made=True,
    )  # fmt: skip
    return plan.chunk


def _build_gemms(case: Case, inputs: Inputs, *, in_chunks: bool, native: bool) -> Runner:
    """The four GEMMs of a linear case, on operands and in buffers that are ready beforehand."""
    assert isinstance(inputs.teacher, fd.TeacherHead)
    dtype = case.dtype if native else head_dtype(case)
    given = (*inputs.leaves.values(), inputs.teacher.hidden, inputs.teacher.weight)
    hidden, weight, teacher_hidden, teacher_weight = (t.detach().to(dtype) for t in given)
    chunk = our_chunk(case) if in_chunks else case.rows
    logits, teacher_logits = (fresh(hidden, chunk, case.vocab) for _ in range(2))
    grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
    starts = range(0, case.rows, chunk)

    def run() -> Result:
        for rows in (slice(start, start + chunk) for start in starts):
            own = logits[: hidden[rows].shape[0]]
            torch.mm(hidden[rows], weight.t(), out=own)
            torch.mm(teacher_hidden[rows], teacher_weight.t(), out=teacher_logits[: own.shape[0]])
            torch.mm(own, weight, out=grad_hidden[rows])
            torch.addmm(
                grad_weight, own.t(), hidden[rows], beta=int(rows.start > 0), out=grad_weight
            )
        return ()

    return run


def _applies(case: Case, *, native: bool) -> bool:
    """The dtype of the case is of interest where the head uses another."""
    return case.kind == "linear" and not (native and head_dtype(case) == case.dtype)


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
"""The provider that the linear losses are compared with."""

# ---- memory and exponentials ------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Rates of this machine, with the threads of torch."""

    copy: float  # bytes/s of a copy, read and written bytes both counted
    read: float  # bytes/s of a sum
    fresh: float  # bytes/s of the first writing of memory that is new, behind huge pages
    exps: float  # exponentials/s in float32: those of one thread, times the threads

    def describe(self) -> dict[str, str]:
        """The rates with their units, for a header."""
        return {
            "copy bandwidth": f"{self.copy / 1e9:.1f} GB/s",
            "read bandwidth": f"{self.read / 1e9:.1f} GB/s",
            "first write to fresh memory": f"{self.fresh / 1e9:.1f} GB/s",
            "exp throughput": f"{self.exps / 1e9:.2f} G/s",
        }

    def seconds(self, case: Case) -> float:
        """Least time of a case on logits: memory or exponentials, and a fresh gradient."""
        work = max(case.bytes / self.copy, case.exps / self.exps)
        return work + case.logits_bytes / self.fresh


def _seconds(run: Callable[[], object], repeats: int = 7) -> float:
    """Median time of a run, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def _exps_per_second(n: int = 1 << 15) -> float:
    """Of one thread, on numbers that stay in its cache."""
    x, y = torch.linspace(-20, 0, n), torch.empty(n)
    arguments = (fd._C.Elementary.exp, x.data_ptr(), y.data_ptr(), n)
    calls = 64

    def run() -> None:
        for _ in range(calls):
            fd._C.evaluate(*arguments)

    return calls * n / _seconds(run)


def measure_machine(size: int = 256 << 20) -> Machine:
    """Rates on buffers of ``size`` bytes, which should be many times the last cache."""
    source = torch.zeros(size // 4)
    target = torch.zeros_like(source)
    return Machine(
        copy=2 * size / _seconds(lambda: target.copy_(source)),
        read=size / _seconds(source.sum),
        fresh=size / _seconds(lambda: fresh(source, size // 4).fill_(0)),
        exps=_exps_per_second() * torch.get_num_threads(),
    )


# ---- prediction of slow GEMMs -----------------------------------------------------------------


@functools.cache
def _gemm_rates(dtype: torch.dtype) -> tuple[float, float, float]:
    """flop/s of small GEMMs as in a head: logits, gradient by hidden, gradient by weight."""
    rows, width, vocab = 128, 256, 2048
    hidden, weight, logits = (
        torch.ones(shape, dtype=dtype) for shape in ((rows, width), (vocab, width), (rows, vocab))
    )
    runs = (lambda: hidden @ weight.t(), lambda: logits @ weight, lambda: logits.t() @ hidden)
    by_logits, by_hidden, by_weight = (
        2 * rows * width * vocab / _seconds(run, repeats=2) for run in runs
    )
    return by_logits, by_hidden, by_weight


def predicted_gemm_seconds(case: Case, provider: Provider) -> float:
    """What the GEMMs of a linear case take, extrapolated from small ones; 0 for other cases."""
    if case.kind != "linear":
        return 0.0
    rates = _gemm_rates(case.dtype if provider.native_gemms else head_dtype(case))
    widths = (case.student_width + case.teacher_width, case.student_width, case.student_width)
    return sum(
        2 * case.rows * case.vocab * width / rate for width, rate in zip(widths, rates, strict=True)
    )
