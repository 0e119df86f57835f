"""The row kernels alone: how fast they read logits and write gradients."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

import fastdistill as fd
from fastdistill._native import RowSpec, TopKRows, Values, run_rows
from fastdistill.teachers import tail_mass

from ..cases import DIVERGENCES, Case
from ..inputs import build_inputs
from .device import Device, Run
from .variables import forced
from .worker import Context

VOCABS = (32000, 128256, 151936, 256000)
KINDS = ("logits", "top_k")
DTYPES = (torch.bfloat16, torch.float32)
CLUSTERS = (1, 2, 4, 6, 8, 9, 12, 16)
THREADS = (128, 192, 256)
ELEMENTS = 1 << 28
"""Of one tensor of logits: many times the L2 cache."""
LISTED = 64


def make_case(kind: str, vocab: int, dtype: torch.dtype, *, dry_run: bool, **fields: Any) -> Case:
    """As many rows of the vocabulary as make ``ELEMENTS``.

    Its ``bytes`` are those of the logits read and of the gradient written, each once: per element
    3 times the size of the dtype, 2 times with a top-k teacher, whose list is also counted.
    """
    rows = 8 if dry_run else ELEMENTS // vocab // 128 * 128
    listed = 0 if kind == "logits" else LISTED
    return Case(kind, rows, vocab, dtype, listed=listed, **fields)


def kernel(case: Case, device: Device) -> Run:
    """One launch that writes the values of the rows and the gradient by their logits."""
    inputs = build_inputs(case, device.torch)
    student = inputs.leaves["student_logits"].detach()
    teacher: Tensor | TopKRows
    if isinstance(inputs.teacher, fd.TopKTeacher):
        log_p = inputs.teacher.log_probs
        teacher = TopKRows(inputs.teacher.ids, log_p, tail_mass(log_p).double())
    else:
        assert isinstance(inputs.teacher, fd.TeacherLogits)
        teacher = inputs.teacher.logits
    name, parameters = type(case.divergence).__name__, list(case.divergence.parameters)
    spec = RowSpec(name, parameters, "bucket", True, 1.0, case.vocab, 1.0, 0.0, 1.0, 0.0)
    values = Values.zeros(case.rows, False, device.torch)
    upstream = torch.full_like(values.soft, 1 / case.rows)
    nothing, gradient = torch.zeros_like(upstream), torch.empty_like(student)
    return lambda: run_rows(
        "fused", spec, student, teacher, values=values, grad_soft=upstream, grad_hard=nothing,
        gradient=gradient,
    )  # fmt: skip


def forget_error(device: Device) -> None:
    """After a refused launch torch may report its error once more, at its own next launch."""
    try:
        torch.zeros(1, device=device.torch)
    except RuntimeError:
        torch.zeros(1, device=device.torch)


def sweep(context: Context, case: Case, runner: Run) -> dict[str, Any]:
    """Emit the time with each cluster and number of threads; columns of the fastest."""
    best: dict[str, Any] = {}
    for cluster, threads in itertools.product(CLUSTERS, THREADS):
        columns: dict[str, Any] = {"case": case.name, "cluster": cluster, "threads": threads}
        try:
            with forced(FASTDISTILL_CUDA_CLUSTER=cluster, FASTDISTILL_CUDA_THREADS=threads):
                timing = context.device.time(runner, seconds=0.015, most=10)
        except RuntimeError as error:
            forget_error(context.device)
            context.emit("sweep", **columns, note=str(error).partition("\n")[0])
            continue
        rate = case.bytes / timing.ms / 1e6
        context.emit("sweep", **columns, gb_per_s=rate, **timing._asdict())
        if rate > best.get("best_gb_per_s", 0.0):
            best = {"best": f"{cluster} x {threads}", "best_gb_per_s": rate}
    return best


def measure_sizes(context: Context) -> None:
    """Every vocabulary, kind of teacher and dtype, as it is launched and at its best."""
    vocabs = (1000,) if context.dry_run else VOCABS
    for vocab, kind, dtype in itertools.product(vocabs, KINDS, DTYPES):
        context.device.free()
        case = make_case(kind, vocab, dtype, dry_run=context.dry_run)
        runner = kernel(case, context.device)
        timing = context.device.time(runner, seconds=0.1)
        context.emit(
            "rows", kind=kind, dtype=str(dtype)[6:], vocab=vocab, rows=case.rows,
            bytes=case.bytes, gb_per_s=case.bytes / timing.ms / 1e6, **timing._asdict(),
            **sweep(context, case, runner),
        )  # fmt: skip


def measure_divergences(context: Context) -> None:
    """Every divergence in bfloat16, with both kinds of teacher."""
    vocab = 1000 if context.dry_run else 151936
    for divergence in DIVERGENCES:
        columns: dict[str, Any] = {"divergence": str(divergence), "vocab": vocab}
        for kind in KINDS:
            context.device.free()
            case = make_case(
                kind, vocab, torch.bfloat16, dry_run=context.dry_run, divergence=divergence
            )
            timing = context.device.time(kernel(case, context.device), seconds=0.1)
            columns |= {
                f"{kind}_ms": timing.ms,
                f"{kind}_gb_per_s": case.bytes / timing.ms / 1e6,
            }
        context.emit("divergences", **columns)


def run(context: Context) -> None:
    """Sizes, then divergences."""
    measure_sizes(context)
    measure_divergences(context)
