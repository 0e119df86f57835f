"""What this GPU can do at best: copies of memory, and the GEMMs of a head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fastdistill._chunks import plan_chunks

from ..cases import Case
from .device import Device, Run
from .linear import heads
from .worker import Context

_COPIED_BYTES = 2 << 30
_DRY_BYTES = 1 << 20


def measure_copy(context: Context) -> None:
    """Emit the bandwidth of a large copy; bytes read and bytes written both count."""
    size = _DRY_BYTES if context.dry_run else _COPIED_BYTES
    source = torch.zeros(size // 4, device=context.device.torch)
    target = torch.empty_like(source)
    timing = context.device.time(lambda: target.copy_(source))
    context.emit("copy", bytes=2 * size, gb_per_s=2 * size / timing.ms / 1e6, **timing._asdict())


def head_gemms(case: Case, rows: int, device: Device) -> Iterator[tuple[str, Run]]:
    """The three GEMMs of a student's head for some rows, on operands that are ready."""
    options: dict[str, Any] = {"dtype": case.dtype, "device": device.torch}
    hidden = torch.randn(rows, case.student_width, **options)
    weight = torch.randn(case.vocab, case.student_width, **options)
    logits = torch.randn(rows, case.vocab, **options)
    by_hidden, by_weight = torch.empty_like(hidden), torch.empty_like(weight)
    yield "logits", lambda: torch.mm(hidden, weight.t(), out=logits)
    yield "gradient by hidden", lambda: torch.mm(logits, weight, out=by_hidden)
    yield "gradient by weight", lambda: torch.mm(logits.t(), hidden, out=by_weight)


def run(context: Context) -> None:
    """Copies, then the GEMMs of each shape, for the rows of a chunk and for all of them."""
    measure_copy(context)
    for shape, case in heads(dry_run=context.dry_run).items():
        plan = plan_chunks(
            case.rows, case.vocab, case.student_width, case.dtype, context.device.torch,
            teacher_is_made=True,
        )  # fmt: skip
        for rows in dict.fromkeys((*plan, case.rows)):
            context.device.free()
            for gemm, runner in head_gemms(case, rows, context.device):
                timing = context.device.time(runner)
                flops = 2 * rows * case.vocab * case.student_width
                context.emit(
                    "gemm", shape=shape, gemm=gemm, rows=rows, dtype=str(case.dtype)[6:],
                    tflop_per_s=flops / timing.ms / 1e9, **timing._asdict(),
                )  # fmt: skip
