"""The operators that torch sees: each direction of a loss is one opaque op with a fake.

An op checks what only data can tell (ids and labels in range), walks over its rows and calls the row
kernels; the autograd around the ops is in ``_autograd``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _C
from ._head import HEAD_SCHEMA, Head, HeadDtypes, WeightGradient, choose_precision
from ._native import SPEC_SCHEMA, RowSpec, Values, fresh, new_stats, run_rows
from ._rows import (
    TEACHER_SCHEMA,
    TeacherRows,
    TeacherTensors,
    chunk_rows,
    matched_rows,
    take_rows,
)

_LIBRARY = torch.library.Library("fastdistill", "DEF")
_TEACHER_FIELDS = len(TeacherTensors._fields)
_ROWS = f"{TEACHER_SCHEMA}, Tensor? labels, Tensor? counted"
_SPEC = f"{SPEC_SCHEMA}, {HEAD_SCHEMA}"
_SPEC_FIELDS = len(RowSpec._fields)

_LIBRARY.define(
    f"rows_forward(Tensor student, {_ROWS}, bool with_metrics, {_SPEC}) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    f"rows_backward(Tensor student, {_ROWS}, Tensor stats, Tensor grad_soft, Tensor grad_hard, "
    f"{_SPEC}) -> Tensor"
)
_LIBRARY.define(
    f"linear(Tensor hidden, Tensor weight, Tensor? bias, {_ROWS}, "
    "Tensor? grad_soft, Tensor? grad_hard, bool[] wanted, int? chunk_size, "
    f"bool with_metrics, {_SPEC}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _check_data(
    teacher: TeacherTensors, labels: Tensor | None, counted: Tensor | None, vocab: int
) -> None:
    """The checks that need the values of ids and labels; nothing is computed before them."""
    if teacher.top_k is not None:
        teacher.top_k.check_ids(vocab)
    if labels is None:
        return
    wrong = (labels < 0) | (labels >= vocab)
    if counted is not None:
        wrong &= counted
    if bool(wrong.any()):
        value = int(labels[wrong][0])
        raise ValueError(f"labels must be in [0, {vocab}) or ignore_index, got {value}")


def _split_options(options: list[Any]) -> tuple[RowSpec, HeadDtypes]:
    return RowSpec(*options[:_SPEC_FIELDS]), HeadDtypes(*options[_SPEC_FIELDS:])


def _outside_autocast(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The dtypes of the GEMMs are arguments: a surrounding autocast must not change them again."""

    @functools.wraps(kernel)
    def run(first: Tensor, *args: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return kernel(first, *args)

    return run


def _part(tensor: Tensor | None, rows: slice | Tensor) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _rows_forward(student: Tensor, *args: Any) -> tuple[Tensor, ...]:
    teacher = TeacherTensors(*args[:_TEACHER_FIELDS])
    labels, counted, with_metrics, *options = args[_TEACHER_FIELDS:]
    spec, dtypes = _split_options(options)
    _check_data(teacher, labels, counted, spec.vocab)
    count = student.shape[:-1].numel()
    values, stats = Values.zeros(count, with_metrics), new_stats(count)
    for rows, own, other in matched_rows(student, teacher, spec, dtypes):
        run_rows(
            "forward",
            spec,
            own,
            other,
            labels=_part(labels, rows),
            counted=_part(counted, rows),
            values=values.rows(rows),
            stats=stats[rows],
        )
    return *values, stats


def _rows_backward(student: Tensor, *args: Any) -> Tensor:
    teacher = TeacherTensors(*args[:_TEACHER_FIELDS])
    labels, counted, stats, grad_soft, grad_hard, *options = args[_TEACHER_FIELDS:]
    spec, dtypes = _split_options(options)
    gradient = fresh(student, student.shape[:-1].numel(), student.shape[-1])
    for rows, own, other in matched_rows(student, teacher, spec, dtypes):
        run_rows(
            "backward",
            spec,
            own,
            other,
            labels=_part(labels, rows),
            counted=_part(counted, rows),
            stats=stats[rows],
            grad_soft=grad_soft[rows],
            grad_hard=grad_hard[rows],
            gradient=gradient[rows],
        )
    return gradient.view(student.shape)


class _LinearGradients:
    """The gradients of a linear loss that were asked for, filled chunk by chunk."""

    def __init__(self, hidden: Tensor, weight: Tensor, head: Head, wanted: list[bool]) -> None:
        self._head = head
        rows = hidden.shape[:-1].numel()
        self.hidden = hidden.new_zeros(rows, hidden.shape[-1]) if wanted[0] else None
        self._weight = WeightGradient(weight, head.vocab, head.precision) if wanted[1] else None
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.bias = weight.new_zeros(weight.shape[0], dtype=wide) if wanted[2] else None

    def add(self, rows: Tensor, hidden: Tensor, grad_logits: Tensor) -> None:
        if self.hidden is not None:
            self.hidden[rows] = self._head.grad_hidden(grad_logits).to(self.hidden.dtype)
        if self._weight is not None:
            self._weight.add(grad_logits, hidden)
        if self.bias is not None:
            self.bias[: self._head.vocab] += grad_logits.sum(0, dtype=self.bias.dtype)

    def results(self, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nothing = weight.new_empty(0)
        return (
            nothing if self.hidden is None else self.hidden.view(hidden.shape),
            nothing if self._weight is None else self._weight.result(),
            nothing if self.bias is None else self.bias.to(weight.dtype),
        )


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    teacher = TeacherTensors(*args[:_TEACHER_FIELDS])
    labels, counted, grad_soft, grad_hard, wanted, chunk_size, with_metrics, *options = args[
        _TEACHER_FIELDS:
    ]
    spec, dtypes = _split_options(options)
    _check_data(teacher, labels, counted, spec.vocab)
    rows = hidden.shape[:-1].numel()
    index = torch.arange(rows) if counted is None else counted.nonzero().flatten()
    precision = choose_precision(weight, dtypes)
    head = Head(weight, bias, spec.vocab, precision)
    buffers = 1 if teacher.weight is None else 2
    chunk = min(
        chunk_size or chunk_rows(rows, spec.vocab, buffers, precision.gemm.itemsize),
        max(1, index.numel()),
    )
    values = Values.zeros(rows, with_metrics)
    gradients = _LinearGradients(hidden, weight, head, wanted)
    _run_chunks(
        hidden, head, TeacherRows(teacher, spec, dtypes, chunk), spec, index.split(chunk),
        fresh(weight, chunk, spec.vocab, dtype=precision.gemm), labels, values,
        (grad_soft, grad_hard) if any(wanted) else None, gradients,
    )  # fmt: skip
    return *values, *gradients.results(hidden, weight)


def _run_chunks(
    hidden: Tensor,
    head: Head,
    teacher: TeacherRows,
    spec: RowSpec,
    chunks: tuple[Tensor, ...],
    buffer: Tensor,
    labels: Tensor | None,
    values: Values,
    upstream: tuple[Tensor, Tensor] | None,
    gradients: _LinearGradients,
) -> None:
    """Per chunk of rows: logits, losses and, in the place of the logits, their gradient."""
    for rows in chunks:
        if rows.numel() == 0:
            continue
        own_hidden = head.operand(take_rows(hidden, rows))
        logits = buffer[: rows.numel()]
        head.logits(own_hidden, logits)
        chunk_values = Values.zeros(rows.numel(), values.metrics.shape[1] > 0)
        run_rows(
            "forward" if upstream is None else "fused",
            spec,
            logits,
            teacher.rows(rows),
            labels=_part(labels, rows),
            values=chunk_values,
            grad_soft=None if upstream is None else upstream[0][rows],
            grad_hard=None if upstream is None else upstream[1][rows],
            gradient=None if upstream is None else logits,
        )
        for total, part in zip(values, chunk_values, strict=True):
            total[rows] = part
        if upstream is not None:
            gradients.add(rows, own_hidden, logits)


def _fake_values(like: Tensor, with_metrics: bool) -> tuple[Tensor, ...]:
    rows = like.shape[:-1].numel()
    soft = like.new_empty(rows, dtype=torch.float64)
    columns = _C.ROW_METRICS if with_metrics else 0
    return soft, torch.empty_like(soft), soft.new_empty(rows, columns)


def _fake_rows_forward(student: Tensor, *args: Any) -> tuple[Tensor, ...]:
    values = _fake_values(student, args[_TEACHER_FIELDS + 2])
    return *values, values[0].new_empty(values[0].shape[0], _C.ROW_STATS)


def _fake_rows_backward(student: Tensor, *_: Any) -> Tensor:
    return student.new_empty(student.shape)


def _fake_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    wanted = args[_TEACHER_FIELDS + 4]
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    gradients = (
        (hidden if i == 0 else weight).new_empty(shape if want else (0,))
        for i, (shape, want) in enumerate(zip(shapes, wanted, strict=True))
    )
    return *_fake_values(hidden, args[_TEACHER_FIELDS + 6]), *gradients


def _no_cuda(*_: Any) -> Any:
    raise RuntimeError(
        "this build of fastdistill has no CUDA backend: move the tensors to the CPU"
    )


for _name, _kernel, _fake in (
    ("rows_forward", _rows_forward, _fake_rows_forward),
    ("rows_backward", _rows_backward, _fake_rows_backward),
    ("linear", _linear, _fake_linear),
):
    _LIBRARY.impl(_name, _outside_autocast(_kernel), "CPU")
    _LIBRARY.impl(_name, _no_cuda, "CUDA")
    torch.library.register_fake(f"fastdistill::{_name}", _fake, lib=_LIBRARY)
