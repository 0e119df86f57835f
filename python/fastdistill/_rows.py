"""Rows out of tensors of any leading shape, and the teacher's rows that belong to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ._chunks import rows_that_fit
from ._head import Head, HeadDtypes, choose_precision
from ._native import RowSpec, TopKRows, fresh

Rows = slice | Tensor
"""Some of the flat rows: a range, or indices on the CPU."""


class TeacherTensors(NamedTuple):
    """The tensors of any teacher, as the ops take them; what a teacher does not have is None."""

    values: Tensor | None = None  # (..., V) logits or, with a weight, (..., D_t) hidden states
    weight: Tensor | None = None
    bias: Tensor | None = None
    ids: Tensor | None = None  # (N, K) int64
    log_p: Tensor | None = None  # (N, K)
    tail_log_prob: Tensor | None = None  # (N,) float64

    @property
    def top_k(self) -> TopKRows | None:
        if self.ids is None or self.log_p is None:
            return None
        return TopKRows(self.ids, self.log_p, self.tail_log_prob)


TEACHER_SCHEMA = (
    "Tensor? teacher, Tensor? teacher_weight, Tensor? teacher_bias, "
    "Tensor? ids, Tensor? log_p, Tensor? tail_log_prob"
)


def weighted(weights: Tensor | float, values: Tensor) -> Tensor:
    """``weights * values``, and nothing, not NaN, where an infinite value has no weight."""
    if isinstance(weights, Tensor):
        return torch.where(weights == 0, 0.0, weights * values)
    return torch.zeros_like(values) if weights == 0 else weights * values


def part(tensor: Tensor | None, rows: Rows) -> Tensor | None:
    """The rows of a tensor that may be absent."""
    return None if tensor is None else tensor[rows]


def count_of(rows: Rows) -> int:
    """How many they are."""
    return rows.stop - rows.start if isinstance(rows, slice) else rows.numel()


def host_sees_data(device: torch.device) -> bool:
    """Whether decisions may depend on data: from another device they would have to wait for it."""
    return device.type == "cpu"


def split_rows(rows: Rows, size: int) -> list[Rows]:
    """The rows in pieces of ``size``, in order."""
    if isinstance(rows, Tensor):
        return list(torch.split(rows, size)) if rows.numel() else []
    starts = range(rows.start, rows.stop, size)
    return [slice(start, min(start + size, rows.stop)) for start in starts]


def _flat_view(tensor: Tensor) -> Tensor | None:
    """(..., V) as (N, V) without a copy, or None where no such view exists."""
    if tensor.dim() == 1:
        return tensor.unsqueeze(0)
    try:
        return tensor.view(-1, tensor.shape[-1]) if tensor.numel() else tensor.flatten(0, -2)
    except RuntimeError:
        return None


def unit_columns(tensor: Tensor) -> Tensor:
    """``tensor`` itself where a row is contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views (n, V) of tensors with one leading shape, in row order, without copying any."""
    flat = [_flat_view(tensor) for tensor in tensors]
    if all(view is not None for view in flat):
        yield tuple(view for view in flat if view is not None)
        return
    for parts in zip(*tensors, strict=True):
        yield from blocks(*parts)


def take_rows(tensor: Tensor, rows: Rows) -> Tensor:
    """Flat rows of a (..., V) tensor: a view where they are a range, else a copy."""
    flat = _flat_view(tensor)
    if flat is None:
        if isinstance(rows, slice):
            rows = torch.arange(rows.start, rows.stop, device=tensor.device)
        return tensor[torch.unravel_index(rows, tensor.shape[:-1])]
    if isinstance(rows, Tensor):
        first, count = int(rows[0]), rows.numel()
        if int(rows[-1]) - first + 1 == count:
            rows = slice(first, first + count)
    return flat[rows]


class TeacherRows:
    """Gives the teacher of any rows: logits from memory, logits from a head, or lists."""

    def __init__(
        self, tensors: TeacherTensors, spec: RowSpec, dtypes: HeadDtypes, most: int
    ) -> None:
        self._tensors = tensors
        self._head: Head | None = None
        if tensors.weight is not None:
            assert tensors.values is not None
            precision = choose_precision(tensors.weight, dtypes)
            self._head = Head(tensors.weight, tensors.bias, spec.vocab, precision)
            self._buffer = fresh(tensors.values, most, spec.vocab, dtype=precision.logits)

    def rows(self, rows: Rows) -> Tensor | TopKRows:
        """The teacher of some flat rows; logits from a head live until the next call."""
        top_k = self._tensors.top_k
        if top_k is not None:
            return top_k.rows(rows)
        assert self._tensors.values is not None
        if self._head is None:
            return unit_columns(take_rows(self._tensors.values, rows))
        hidden = self._head.operand(take_rows(self._tensors.values, rows))
        out = self._buffer[: count_of(rows)]
        self._head.logits(hidden, out)
        return out

    def counted_rows(self, rows: slice, counted: Tensor | None) -> Tensor | TopKRows:
        """The teacher of a range of rows: of those that do not count no logits are made."""
        if self._head is None or counted is None or not host_sees_data(counted.device):
            return self.rows(rows)
        index = counted[rows].nonzero().flatten()
        out = self._buffer[: count_of(rows)]
        if index.numel():
            self.rows(rows.start + index)
            # They are the buffer's first. Each moves up to its place, the last one first.
            for source, target in reversed(list(enumerate(index.tolist()))):
                if source != target:
                    out[target] = out[source]
        return out


def matched_rows(
    student: Tensor,
    teacher: TeacherTensors,
    counted: Tensor | None,
    spec: RowSpec,
    dtypes: HeadDtypes,
) -> Iterator[tuple[slice, Tensor, Tensor | TopKRows]]:
    """(range, student rows, teacher rows) that cover all rows in order, as views where possible.

    The teacher's logits of a row that does not count, (N,) bool, may be anything.
    """
    student = unit_columns(student)
    if teacher.values is not None and teacher.weight is None:
        start = 0
        for own, other in blocks(student, unit_columns(teacher.values)):
            yield slice(start, start + own.shape[0]), own, other
            start += own.shape[0]
        return
    count = student.shape[:-1].numel()
    size = count
    if teacher.weight is not None:
        size = rows_that_fit(count, spec.vocab * torch.float32.itemsize, student.device)
    source = TeacherRows(teacher, spec, dtypes, size)
    start = 0
    for (block,) in blocks(student):
        for own in torch.split(block, max(1, size)):
            if not own.shape[0]:
                continue
            stop = start + own.shape[0]
            yield slice(start, stop), own, source.counted_rows(slice(start, stop), counted)
            start = stop
