"""The operators that torch sees: each direction of a loss is one opaque op with a fake.

An op first checks what only data can tell (ids and labels in range), then walks over its rows. The
autograd around the ops is in ``_autograd``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _C
from ._chunks import plan_chunks
from ._head import HEAD_SCHEMA, Head, HeadDtypes, choose_precision, gradient_dtype
from ._linear import ChunkLoop, HeadGradients
from ._native import SPEC_SCHEMA, RowSpec, Values, fresh, new_stats, run_rows
from ._rows import (
    TEACHER_SCHEMA,
    Rows,
    TeacherRows,
    TeacherTensors,
    count_of,
    host_sees_data,
    matched_rows,
    part,
)

_LIBRARY = torch.library.Library("fastdistill", "DEF")
_TEACHER_FIELDS = len(TeacherTensors._fields)
_SPEC_FIELDS = len(RowSpec._fields)
_ROWS = f"{TEACHER_SCHEMA}, Tensor? labels, Tensor? counted"
_OPTIONS = f"{SPEC_SCHEMA}, {HEAD_SCHEMA}"

# Values are soft (N,), hard (N,) and metrics (N, M); upstream gradients are (N,).
_LIBRARY.define(
    f"rows_forward(Tensor student, {_ROWS}, Tensor? grad_soft, Tensor? grad_hard, "
    f"bool with_metrics, {_OPTIONS}) "
    "-> (Tensor soft, Tensor hard, Tensor metrics, Tensor stats, Tensor grad_student)"
)
_LIBRARY.define(
    f"rows_backward(Tensor student, {_ROWS}, Tensor stats, Tensor grad_soft, Tensor grad_hard, "
    f"{_OPTIONS}) -> Tensor"
)
_LIBRARY.define(
    f"linear(Tensor hidden, Tensor weight, Tensor? bias, {_ROWS}, "
    "Tensor? grad_soft, Tensor? grad_hard, bool[] wanted, int? chunk_size, bool with_metrics, "
    f"{_OPTIONS}) -> (Tensor soft, Tensor hard, Tensor metrics, "
    "Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)"
)


def _check_data(
    teacher: TeacherTensors, labels: Tensor | None, counted: Tensor | None, vocab: int
) -> None:
    """Raise where an id or a label is out of range. The CUDA kernels answer those with NaN."""
    if teacher.top_k is not None:
        teacher.top_k.check_ids(vocab, counted)
    if labels is None:
        return
    wrong = (labels < 0) | (labels >= vocab)
    if counted is not None:
        wrong &= counted
    if bool(wrong.any()):
        value = int(labels[wrong][0])
        raise ValueError(f"labels must be in [0, {vocab}) or ignore_index, got {value}")


def _split_options(options: Sequence[Any]) -> tuple[RowSpec, HeadDtypes]:
    return RowSpec(*options[:_SPEC_FIELDS]), HeadDtypes(*options[_SPEC_FIELDS:])


# ---- kernels ----------------------------------------------------------------------------------


def _outside_autocast(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The dtypes of the GEMMs are arguments: a surrounding autocast must not change them again."""

    @functools.wraps(kernel)
    def run(first: Tensor, *args: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return kernel(first, *args)

    return run


def _rows_forward(student: Tensor, *args: Any) -> tuple[Tensor, ...]:
    teacher = TeacherTensors(*args[:_TEACHER_FIELDS])
    labels, counted, grad_soft, grad_hard, with_metrics, *options = args[_TEACHER_FIELDS:]
    spec, dtypes = _split_options(options)
    if host_sees_data(student.device):
        _check_data(teacher, labels, counted, spec.vocab)
    count = student.shape[:-1].numel()
    fused = grad_soft is not None
    values = Values.zeros(count, with_metrics, student.device)
    stats = new_stats(0 if fused else count, student.device)
    gradient = fresh(student, count, student.shape[-1]) if fused else None
    for rows, own, other in matched_rows(student, teacher, counted, spec, dtypes):
        run_rows(
            "fused" if fused else "forward",
            spec,
            own,
            other,
            labels=part(labels, rows),
            counted=part(counted, rows),
            values=values.rows(rows),
            stats=None if fused else stats[rows],
            grad_soft=part(grad_soft, rows),
            grad_hard=part(grad_hard, rows),
            gradient=part(gradient, rows),
        )
    nothing = student.new_empty(0)
    return *values, stats, nothing if gradient is None else gradient.view(student.shape)


def _rows_backward(student: Tensor, *args: Any) -> Tensor:
    teacher = TeacherTensors(*args[:_TEACHER_FIELDS])
    labels, counted, stats, grad_soft, grad_hard, *options = args[_TEACHER_FIELDS:]
    spec, dtypes = _split_options(options)
    gradient = fresh(student, student.shape[:-1].numel(), student.shape[-1])
    for rows, own, other in matched_rows(student, teacher, counted, spec, dtypes):
        run_rows(
            "backward",
            spec,
            own,
            other,
            labels=part(labels, rows),
            counted=part(counted, rows),
            stats=stats[rows],
            grad_soft=grad_soft[rows],
            grad_hard=grad_hard[rows],
            gradient=gradient[rows],
        )
    return gradient.view(student.shape)


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    teacher = TeacherTensors(*args[:_TEACHER_FIELDS])
    labels, counted, grad_soft, grad_hard, wanted, chunk_size, with_metrics, *options = args[
        _TEACHER_FIELDS:
    ]
    spec, dtypes = _split_options(options)
    if host_sees_data(hidden.device):
        _check_data(teacher, labels, counted, spec.vocab)
    rows = hidden.shape[:-1].numel()
    index = _counted_rows(rows, counted)
    precision, count = choose_precision(weight, dtypes), count_of(index)
    plan = plan_chunks(
        count, spec.vocab, weight.shape[1], precision.logits, hidden.device,
        teacher_is_made=teacher.weight is not None, chunk_size=chunk_size,
    )  # fmt: skip
    head = Head(weight, bias, spec.vocab, precision)
    gradients = HeadGradients(hidden, weight, head, wanted, -(-count // plan.chunk))
    loop = ChunkLoop(
        hidden=hidden,
        head=head,
        teacher=TeacherRows(teacher, spec, dtypes, plan.piece),
        spec=spec,
        labels=labels,
        counted=counted if isinstance(index, slice) else None,
        values=Values.zeros(rows, with_metrics, hidden.device),
        upstream=(grad_soft, grad_hard) if gradients.any else None,
        gradients=gradients,
    )
    loop.run(index, plan)
    return *loop.values, *gradients.results(hidden, weight)


def _counted_rows(rows: int, counted: Tensor | None) -> Rows:
    """The rows that count, or all where the host cannot tell without waiting for the device."""
    if counted is None or not host_sees_data(counted.device):
        return slice(0, rows)
    return counted.nonzero().flatten()


# ---- fakes ------------------------------------------------------------------------------------


def _fake_values(like: Tensor, with_metrics: bool) -> tuple[Tensor, ...]:
    rows = math.prod(like.shape[:-1])  # Size.numel() would tie a symbolic size to its value
    soft = like.new_empty(rows, dtype=torch.float64)
    columns = _C.ROW_METRICS if with_metrics else 0
    return soft, torch.empty_like(soft), soft.new_empty(rows, columns)


def _fake_rows_forward(student: Tensor, *args: Any) -> tuple[Tensor, ...]:
    fused, with_metrics = args[_TEACHER_FIELDS + 2] is not None, args[_TEACHER_FIELDS + 4]
    values = _fake_values(student, with_metrics)
    stats = values[0].new_empty(0 if fused else values[0].shape[0], _C.ROW_STATS)
    return *values, stats, student.new_empty(student.shape if fused else (0,))


def _fake_rows_backward(student: Tensor, *_: Any) -> Tensor:
    return student.new_empty(student.shape)


def _fake_linear(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, *args: Any
) -> tuple[Tensor, ...]:
    wanted, _, with_metrics = args[_TEACHER_FIELDS + 4 : _TEACHER_FIELDS + 7]
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    likes = (hidden, weight, weight)
    gradients = (
        like.new_empty(shape, dtype=gradient_dtype(like.dtype)) if want else weight.new_empty(0)
        for like, shape, want in zip(likes, shapes, wanted, strict=True)
    )
    return *_fake_values(hidden, with_metrics), *gradients


def _no_cuda(*_: Any) -> Any:
    raise RuntimeError(
        "this build of fastdistill has no CUDA backend: build it with nvcc on the PATH by "
        "`pip install --no-binary fastdistill -C cmake.define.FD_CUDA=ON fastdistill`, "
        "or move the tensors to the CPU"
    )


def _no_derivative(*_: Any) -> Any:
    raise RuntimeError(
        "the losses of fastdistill have a derivative, its operators have none by themselves: "
        "an exported program computes losses and metrics but cannot be trained"
    )


for _name, _kernel, _fake in (
    ("rows_forward", _rows_forward, _fake_rows_forward),
    ("rows_backward", _rows_backward, _fake_rows_backward),
    ("linear", _linear, _fake_linear),
):
    _LIBRARY.impl(_name, _outside_autocast(_kernel), "CPU")
    _LIBRARY.impl(_name, _outside_autocast(_kernel) if _C.CUDA else _no_cuda, "CUDA")
    torch.library.register_fake(f"fastdistill::{_name}", _fake, lib=_LIBRARY)
    torch.library.register_autograd(f"fastdistill::{_name}", _no_derivative, lib=_LIBRARY)
