"""The head of a language model, applied to a chunk of rows at a time.

GEMMs are torch's. On a CPU whose half-precision GEMMs are slower than float32 ones, by an order of
magnitude where they are not done in hardware, the operands, already rounded to the compute dtype,
are widened a panel of the weight at a time and multiplied in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import _C
from ._native import fresh

_PANEL_BYTES = 16 << 20
"""Of a weight that is widened piece by piece, into one buffer: fresh memory costs more."""

_LOGIT_COLUMNS = 1024
"""That a CPU makes at once, in float32 or float64: MKL is slower at those of a whole vocabulary."""

_PRODUCT_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}
"""Of the float32 sum, the part to which a product is added at once: on a CPU both are in cache."""


class HeadDtypes(NamedTuple):
    """What the caller's context says about the GEMMs of a head; trailing arguments of every op."""

    autocast: torch.dtype | None  # the dtype of an active autocast
    logits: torch.dtype | None  # torch.float32: logits are not to be rounded to a half precision


HEAD_SCHEMA = "ScalarType? autocast_dtype, ScalarType? logits_dtype"


class Precision(NamedTuple):
    """The dtypes of a head's GEMMs."""

    compute: torch.dtype  # operands are rounded to it: what F.linear would use
    operand: torch.dtype  # operands are multiplied in it
    logits: torch.dtype  # results are stored in it


def choose_precision(weight: Tensor, dtypes: HeadDtypes) -> Precision:
    """The precision of a head whose weight is given."""
    compute = dtypes.autocast or weight.dtype
    if weight.dtype == torch.float64 or compute == torch.float32:
        compute = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return Precision(compute, compute, compute)
    operand = compute if _half_gemm_pays(compute, weight.device) else torch.float32
    if dtypes.logits != torch.float32:
        return Precision(compute, operand, operand)
    if not _keeps_accumulator(weight.device):
        operand = torch.float32
    return Precision(compute, operand, torch.float32)


def bfloat16_pays_on_cpu() -> bool:
    """Whether torch's GEMMs of bfloat16 are faster than those of float32 on this processor."""
    return torch.backends.mkldnn.is_available() and _C.has_fast_bfloat16_gemms()


def _half_gemm_pays(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether GEMMs of a half precision are worth doing in it; float16 loses small gradients."""
    if dtype == torch.float16:
        return False
    return device.type != "cpu" or bfloat16_pays_on_cpu()


def _keeps_accumulator(device: torch.device) -> bool:
    """Whether a GEMM of half-precision operands can store its float32 sums unrounded."""
    return device.type == "cuda" and hasattr(torch.ops.aten.addmm, "dtype_out")


def gradient_dtype(parameter: torch.dtype) -> torch.dtype:
    """In which a gradient is kept until it is scaled: float16 would underflow before."""
    return torch.float32 if parameter == torch.float16 else parameter


class Head:
    """``hidden @ weight.T + bias`` for the first ``vocab`` ids, and its gradients."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, vocab: int, precision: Precision
    ) -> None:
        self.weight = weight[:vocab]
        self.vocab = vocab
        self.precision = precision
        self.bias = None if bias is None else self.operand(bias[:vocab])
        if weight.dtype != precision.operand and precision.operand == precision.compute:
            self.weight = self.weight.to(precision.operand)  # once, as F.linear under autocast does
        self._panel: Tensor | None = None  # the part of the weight that is widened at the moment

    def operand(self, tensor: Tensor) -> Tensor:
        """Rounded to the compute dtype, in the dtype of the operands."""
        return tensor.to(self.precision.compute).to(self.precision.operand)

    def gradient_operand(self, grad_logits: Tensor) -> Tensor:
        """A gradient by logits as an operand of the GEMMs of the gradients."""
        return grad_logits.to(self.precision.operand)

    def _panels(self, most: int) -> Iterator[tuple[slice, Tensor]]:
        """The weight in the dtype of the operands, at most ``most`` rows of it at a time."""
        ready = self.weight.dtype == self.precision.operand == self.precision.compute
        fitting = max(1, _PANEL_BYTES // (4 * self.weight.shape[1]))
        width = most if ready else min(most, fitting)
        for start in range(0, self.vocab, width):
            panel = slice(start, min(start + width, self.vocab))
            weight = self.weight[panel]
            yield panel, weight if ready else self._widen(weight, min(fitting, self.vocab))

    def _widen(self, weight: Tensor, most: int) -> Tensor:
        """Some rows of the weight as operands, until the next ones are; ``most`` at any time."""
        if self._panel is None:
            self._panel = fresh(weight, most, weight.shape[1], dtype=self.precision.operand)
        return self._panel[: weight.shape[0]].copy_(weight.to(self.precision.compute))

    def logits(self, hidden: Tensor, out: Tensor) -> None:
        """out (C, vocab) = logits of hidden (C, D)."""
        in_pieces = hidden.device.type == "cpu" and hidden.dtype in (torch.float32, torch.float64)
        for panel, weight in self._panels(_LOGIT_COLUMNS if in_pieces else self.vocab):
            if self.bias is not None and out.dtype == hidden.dtype:
                torch.addmm(self.bias[panel], hidden, weight.t(), out=out[:, panel])
                continue
            _mm(hidden, weight.t(), out[:, panel])
            if self.bias is not None:
                out[:, panel] += self.bias[panel]

    def grad_hidden(self, grad_logits: Tensor) -> Tensor:
        """(C, D) gradient by hidden of a chunk whose gradient by logits is (C, vocab)."""
        total: Tensor | None = None
        for panel, weight in self._panels(self.vocab):
            if total is None:
                total = grad_logits[:, panel] @ weight
            else:
                total.addmm_(grad_logits[:, panel], weight)
        assert total is not None
        return total


class WeightGradient:
    """Sum over ``chunks`` chunks of grad_logits.T @ hidden.

    It is accumulated in float32 (float64 for float64), by the GEMMs themselves where they can keep
    their sums; else a product in another dtype is added to it a piece of the vocabulary at a time.
    Where a wider sum would be no more exact it is made in the dtype of the gradient: that of one
    chunk, and of two whose products are rounded to it anyway.
    """

    def __init__(self, weight: Tensor, vocab: int, precision: Precision, chunks: int) -> None:
        operand = precision.operand
        wide = torch.float64 if operand == torch.float64 else torch.float32
        self._dtype, self._vocab = gradient_dtype(weight.dtype), vocab
        self._keeps = operand != wide and _keeps_accumulator(weight.device)
        rounded_anyway = operand == self._dtype and not self._keeps
        narrow = chunks <= (2 if rounded_anyway else 1)
        self._sum = fresh(weight, *weight.shape, dtype=self._dtype if narrow else wide)
        self._sum[vocab:].zero_()
        self._empty = True  # the first chunk is written, which saves a pass over fresh memory
        self._product: Tensor | None = None
        if self._sum.dtype != operand and not self._keeps:  # a GEMM cannot write it
            most = _PRODUCT_BYTES[weight.device.type] // (wide.itemsize * weight.shape[1])
            height = min(vocab, max(1, most))
            self._product = fresh(weight, height, weight.shape[1], dtype=operand)

    def add(self, grad_logits: Tensor, hidden: Tensor) -> None:
        real, first = self._sum[: self._vocab], self._empty
        self._empty = False
        if self._product is None:
            _addmm(real, grad_logits.t(), hidden, beta=0 if first else 1)
            return
        height = self._product.shape[0]
        for total, columns in zip(real.split(height), grad_logits.split(height, 1), strict=True):
            product = torch.mm(columns.t(), hidden, out=self._product[: total.shape[0]])
            if first:
                total.copy_(product)
            else:
                total.add_(product)

    def result(self) -> Tensor:
        self._product = None
        if self._empty:
            self._sum.zero_()
        if self._sum.dtype == self._dtype:
            return self._sum
        return fresh(self._sum, *self._sum.shape, dtype=self._dtype).copy_(self._sum)


def _addmm(total: Tensor, a: Tensor, b: Tensor, beta: int) -> None:
    """total = beta * total + a @ b, whose sums are not rounded to a narrower dtype than total's."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, beta=beta, out=total)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, beta=beta, out=total)


def _mm(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """The product in the dtype of ``out``; where that is a wider one, its sums are not rounded."""
    if out.dtype == a.dtype:
        return torch.mm(a, b, out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)
