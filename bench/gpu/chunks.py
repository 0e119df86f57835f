"""What the choice of chunks rests on: GEMMs by their rows, and the loss by its memory."""

from __future__ import annotations

import torch

from fastdistill._chunks import BUDGET_VARIABLE, plan_chunks, waves_of
from fastdistill._head import HeadDtypes, WeightGradient, choose_precision

from ..cases import Case
from ..inputs import build_inputs
from ..provider import OURS
from .linear import heads
from .variables import forced
from .worker import Context

_ROWS = range(512, 4608 + 1, 256)
_BUDGETS = (512, 768, 1024, 1280, 1536, 2048, 3072)
"""MiB."""
_DRY_ROWS, _DRY_BUDGETS = (8, 16), (1, 2)


def measure_gemms(context: Context, shape: str, case: Case) -> None:
    """Emit the speed of the gradients' GEMMs by their rows.

    The result of the one by the hidden states is small, so its last wave of tiles, partly filled,
    counts. That by the weight adds to a sum, which is in float32 where there are several chunks.
    """
    device = context.device
    counts = _DRY_ROWS if context.dry_run else [rows for rows in _ROWS if rows <= case.rows]
    precision = choose_precision(
        torch.empty(0, dtype=case.dtype, device=device.torch), HeadDtypes(None, None)
    )
    weight, logits, hidden = (
        torch.randn(size, dtype=precision.operand, device=device.torch)
        for size in (
            (case.vocab, case.student_width),
            (counts[-1], case.vocab),
            (counts[-1], case.student_width),
        )
    )
    sums = {
        name: WeightGradient(weight, case.vocab, precision, chunks)
        for name, chunks in (("bfloat16", 1), ("float32", 3))
    }
    for rows in counts:
        flops = 2 * rows * case.vocab * case.student_width
        by_hidden = device.time(lambda rows=rows: logits[:rows] @ weight, seconds=0.02, most=10)
        context.emit(
            "hidden_gradient", shape=shape, rows=rows,
            waves=waves_of(rows, case.student_width, device.multiprocessors),
            tflop_per_s=flops / by_hidden.ms / 1e9, **by_hidden._asdict(),
        )  # fmt: skip
        for name, total in sums.items():
            by_weight = device.time(
                lambda rows=rows, total=total: total.add(logits[:rows], hidden[:rows]),
                seconds=0.02, most=10,
            )  # fmt: skip
            context.emit(
                "weight_gradient", shape=shape, rows=rows, sum=name,
                tflop_per_s=flops / by_weight.ms / 1e9, **by_weight._asdict(),
            )  # fmt: skip


def measure_budgets(context: Context, shape: str, case: Case) -> None:
    """Emit time and peak memory of the whole loss by the memory that its logits may take."""
    device = context.device
    runner = OURS.build(case, build_inputs(case, device.torch))
    for mib in _DRY_BUDGETS if context.dry_run else _BUDGETS:
        with forced(**{BUDGET_VARIABLE: mib}):
            plan = plan_chunks(
                case.rows, case.vocab, case.student_width, case.dtype, device.torch,
                teacher_is_made=True,
            )  # fmt: skip
            timing = device.time(runner, seconds=0.2, most=10)
            context.emit(
                "budget", shape=shape, mib=mib, **plan._asdict(), **timing._asdict(),
                peak_mb=device.peak_megabytes(runner),
            )  # fmt: skip


def run(context: Context) -> None:
    """Every head: its GEMMs, then its loss."""
    for shape, case in heads(dry_run=context.dry_run).items():
        for measure in (measure_gemms, measure_budgets):
            context.device.free()
            measure(context, shape, case)
