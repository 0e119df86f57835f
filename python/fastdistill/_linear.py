"""The linear loss: logits, losses and gradients, a chunk of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._chunks import ChunkPlan
from ._head import Head, WeightGradient, gradient_dtype
from ._native import RowSpec, Values, fresh, run_rows
from ._rows import Rows, TeacherRows, count_of, part, split_rows, take_rows


class HeadGradients:
    """The gradients by hidden states (N, D), weight (V, D) and bias (V,) that are wanted."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, head: Head, wanted: list[bool], chunks: int
    ) -> None:
        self._head = head
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        rows = hidden.shape[:-1].numel()
        kept = gradient_dtype(hidden.dtype)
        self._hidden = hidden.new_zeros(rows, hidden.shape[-1], dtype=kept) if wanted[0] else None
        self._weight = None
        if wanted[1]:
            self._weight = WeightGradient(weight, head.vocab, head.precision, chunks)
        self._bias = weight.new_zeros(weight.shape[0], dtype=wide) if wanted[2] else None
        self.any = any(wanted)

    def add(self, rows: Rows, hidden: Tensor, grad_logits: Tensor) -> None:
        """Add what a chunk contributes: its rows, hidden states (C, D), gradient (C, vocab)."""
        grad_logits = self._head.gradient_operand(grad_logits)
        if self._hidden is not None:
            self._hidden[rows] = self._head.grad_hidden(grad_logits).to(self._hidden.dtype)
        if self._weight is not None:
            self._weight.add(grad_logits, hidden)
        if self._bias is not None:
            self._bias[: self._head.vocab] += grad_logits.sum(0, dtype=self._bias.dtype)

    def results(self, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """In the shapes of their parameters and their `gradient_dtype`; empty where not wanted."""
        by_weight = None if self._weight is None else self._weight.result()
        by_bias = None if self._bias is None else self._bias.to(gradient_dtype(weight.dtype))
        return (
            weight.new_empty(0) if self._hidden is None else self._hidden.view(hidden.shape),
            weight.new_empty(0) if by_weight is None else by_weight,
            weight.new_empty(0) if by_bias is None else by_bias,
        )


@dataclass(frozen=True)
class ChunkLoop:
    """Walks over chunks of rows and fills ``values`` and ``gradients``."""

    hidden: Tensor
    head: Head
    teacher: TeacherRows
    spec: RowSpec
    labels: Tensor | None
    counted: Tensor | None
    """Where the chunks have rows that do not count."""
    values: Values
    upstream: tuple[Tensor, Tensor] | None
    """d loss / d soft and d loss / d hard of each row, where gradients are wanted."""
    gradients: HeadGradients

    def run(self, rows: Rows, plan: ChunkPlan) -> None:
        chunks = split_rows(rows, plan.chunk)
        if not chunks:
            return
        dtype, size = self.head.precision.logits, max(map(count_of, chunks))
        buffer = fresh(self.hidden, size, self.head.vocab, dtype=dtype)
        for chunk in chunks:
            self._run_chunk(chunk, plan.piece, buffer[: count_of(chunk)])

    def _run_chunk(self, chunk: Rows, size: int, logits: Tensor) -> None:
        """``logits`` is scratch: it holds the chunk's logits, then their gradient."""
        hidden = self.head.operand(take_rows(self.hidden, chunk))
        if self.counted is not None:  # a NaN there must not reach the gradient by the weight
            hidden = torch.where(self.counted[chunk].unsqueeze(-1), hidden, 0.0)
        self.head.logits(hidden, logits)
        for rows, piece in zip(split_rows(chunk, size), logits.split(size), strict=True):
            self._run_rows(rows, piece)
        if self.upstream is not None:
            self.gradients.add(chunk, hidden, logits)

    def _run_rows(self, rows: Rows, logits: Tensor) -> None:
        """Values of some rows; their logits become the gradient where one is wanted."""
        with_metrics = self.values.metrics.shape[1] > 0
        values = Values.zeros(count_of(rows), with_metrics, logits.device)
        fused = self.upstream is not None
        grad_soft, grad_hard = self.upstream if self.upstream is not None else (None, None)
        run_rows(
            "fused" if fused else "forward",
            self.spec,
            logits,
            self.teacher.rows(rows),
            labels=part(self.labels, rows),
            counted=part(self.counted, rows),
            values=values,
            grad_soft=part(grad_soft, rows),
            grad_hard=part(grad_hard, rows),
            gradient=logits if fused else None,
        )
        for total, own in zip(self.values, values, strict=True):
            total[rows] = own
