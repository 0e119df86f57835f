"""Tensors to pointers: one call of the row kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import _C

_DTYPES = {
    torch.float32: _C.DType.float32,
    torch.bfloat16: _C.DType.bfloat16,
    torch.float16: _C.DType.float16,
    torch.float64: _C.DType.float64,
}
_KERNELS = {name: index for index, (name, _) in enumerate(_C.divergences())}
_HUGE_PAGE_BYTES = 4 << 20


class RowSpec(NamedTuple):
    """What a row kernel needs beside tensors. Also the trailing arguments of every op."""

    divergence: str
    parameters: list[float]
    tail: str
    sums_to_one: bool  # the teacher's probabilities do, but for rounding
    temperature: float
    vocab: int
    student_scale: float
    student_softcap: float
    teacher_scale: float
    teacher_softcap: float


SPEC_SCHEMA = (
    "str divergence, float[] parameters, str tail, bool sums_to_one, float temperature, "
    "SymInt vocab, float student_scale, float student_softcap, "
    "float teacher_scale, float teacher_softcap"
)


class TopKRows(NamedTuple):
    """A top-k teacher as the kernels take it."""

    ids: Tensor  # (N, K) int64
    log_p: Tensor  # (N, K) float32, or float64 for a float64 student
    tail_log_prob: Tensor | None  # (N,) float64

    def rows(self, rows: slice | Tensor) -> TopKRows:
        tail = self.tail_log_prob
        return TopKRows(self.ids[rows], self.log_p[rows], None if tail is None else tail[rows])

    def check_ids(self, vocab: int, counted: Tensor | None) -> None:
        """Raise ValueError where an id is out of range or repeated in a row that counts."""
        counted = None if counted is None else counted.contiguous()
        bad = _C.bad_id(self.native("renormalize"), _pointer(counted), self.ids.shape[0], vocab)
        if bad is not None:
            row, slot, value = bad
            raise ValueError(
                f"teacher ids must be distinct and in [0, {vocab}), or -1 for an empty slot; "
                f"got {value} in row {row}, slot {slot}"
            )

    def native(self, tail: str, sums_to_one: bool = True) -> _C.TopK:
        log_tail = self.tail_log_prob
        return _C.TopK(
            ids=self.ids.data_ptr(),
            ids_stride=_row_stride(self.ids),
            log_p=self.log_p.data_ptr(),
            log_p_stride=_row_stride(self.log_p),
            k=self.ids.shape[1],
            tail=getattr(_C.Tail, tail),
            sums_to_one=sums_to_one,
            tail_log_prob=_pointer(log_tail),
        )


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _row_stride(rows: Tensor) -> int:
    return rows.stride(0) if rows.shape[0] > 1 else rows.shape[1]


def _logits(rows: Tensor, scale: float = 1.0, softcap: float = 0.0) -> _C.Logits:
    return _C.Logits(rows.data_ptr(), _row_stride(rows), _DTYPES[rows.dtype], scale, softcap)


def fresh(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor; on the CPU behind huge pages where it is big."""
    tensor = torch.empty(shape, dtype=dtype or like.dtype, device=like.device)
    if tensor.device.type == "cpu" and tensor.nbytes >= _HUGE_PAGE_BYTES:
        _C.advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


class Values(NamedTuple):
    """Per-row results, float64: the divergence, the cross entropy, the metrics."""

    soft: Tensor  # (N,)
    hard: Tensor  # (N,) zero without labels
    metrics: Tensor  # (N, M), M = 0 where they are not wanted

    @staticmethod
    def zeros(rows: int, with_metrics: bool, device: torch.device) -> Values:
        columns = _C.ROW_METRICS if with_metrics else 0
        shapes = ((rows,), (rows,), (rows, columns))
        return Values(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def rows(self, index: slice) -> Values:
        """Views of these rows."""
        return Values(self.soft[index], self.hard[index], self.metrics[index])


def new_stats(rows: int, device: torch.device) -> Tensor:
    """Space for what the backward needs of each row."""
    return torch.empty(rows, _C.ROW_STATS, dtype=torch.float64, device=device)


@contextlib.contextmanager
def _current(device: torch.device) -> Iterator[int | None]:
    """Make a CUDA device the current one; gives the address of its current stream."""
    if device.type == "cpu":
        yield None
        return
    with torch.cuda.device(device):
        yield torch.cuda.current_stream().cuda_stream


def _in_arithmetic_of(student: Tensor, teacher: Tensor) -> Tensor:
    """The CUDA kernels take float64 on both sides or on neither."""
    wide = student.dtype == torch.float64
    if wide == (teacher.dtype == torch.float64):
        return teacher
    return teacher.to(torch.float64 if wide else torch.float32)


def run_rows(
    mode: str,
    spec: RowSpec,
    student: Tensor,
    teacher: Tensor | TopKRows,
    *,
    labels: Tensor | None = None,
    counted: Tensor | None = None,
    values: Values | None = None,
    stats: Tensor | None = None,
    grad_soft: Tensor | None = None,
    grad_hard: Tensor | None = None,
    gradient: Tensor | None = None,
) -> None:
    """Run the kernels over ``student`` (N, V); every output is written in place.

    ``mode`` is "forward" (values, stats), "backward" (stats -> gradient) or "fused" (values and
    gradient). ``gradient`` may be ``student`` itself. On a CUDA device the kernels are queued on
    its current stream.
    """
    labels, counted, grad_soft, grad_hard = (
        None if tensor is None else tensor.contiguous()
        for tensor in (labels, counted, grad_soft, grad_hard)
    )
    top_k = teacher if isinstance(teacher, TopKRows) else None
    dense = teacher if isinstance(teacher, Tensor) else None
    if dense is not None and student.is_cuda:
        dense = _in_arithmetic_of(student, dense)
    with _current(student.device) as stream:
        _C.run(
            mode=getattr(_C.Mode, mode),
            divergence=_KERNELS[spec.divergence],
            parameters=spec.parameters,
            rows=student.shape[0],
            vocab=spec.vocab,
            temperature=spec.temperature,
            student=_logits(student, spec.student_scale, spec.student_softcap),
            teacher=None
            if dense is None
            else _logits(dense, spec.teacher_scale, spec.teacher_softcap),
            top_k=None if top_k is None else top_k.native(spec.tail, spec.sums_to_one),
            labels=_pointer(labels),
            counted=_pointer(counted),
            soft=0 if values is None else values.soft.data_ptr(),
            hard=0 if values is None else values.hard.data_ptr(),
            metrics=0
            if values is None or not values.metrics.numel()
            else values.metrics.data_ptr(),
            stats=_pointer(stats),
            grad_soft=_pointer(grad_soft),
            grad_hard=_pointer(grad_hard),
            gradient=None if gradient is None else _logits(gradient),
            gradient_width=0 if gradient is None else gradient.shape[1],
            threads=torch.get_num_threads(),
            stream=stream,
        )
