"""Autograd around the ops. No mathematics here: the ops return values and gradients.

``rows`` stands for the teacher's tensors, the labels and the mask, ``options`` for the spec and the
dtypes, both in the order in which every op takes them. Every Function also returns the table of
metrics (N, M), without gradient; M = 0 where they are not wanted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _ops  # noqa: F401  (registers the ops)
from ._rows import host_sees_data, weighted

_fd = torch.ops.fastdistill


def _first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward that raises where it would have to be differentiated again.

    ``once_differentiable`` alone sees that only where the upstream gradient has a graph. Elsewhere
    the gradients would pass for constants, and a penalty on them would have no effect.
    """
    once = once_differentiable(backward)

    @functools.wraps(backward)
    def run(ctx: Any, *upstream: Tensor) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "the losses of fastdistill can be differentiated once, got create_graph=True "
                "(fastdistill.reference can be differentiated twice)"
            )
        return once(ctx, *upstream)

    return run


class RowLosses(torch.autograd.Function):
    """(soft, hard, metrics) of each row from logits, which the backward reads again."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        with_metrics: bool,
        options: tuple[Any, ...],
        *rows: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        soft, hard, metrics, stats, _ = _fd.rows_forward(
            student, *rows, None, None, with_metrics, *options
        )
        ctx.save_for_backward(student, *rows, stats)
        ctx.mark_non_differentiable(metrics)
        ctx.options, ctx.rows = options, len(rows)
        return soft, hard, metrics

    @staticmethod
    @_first_order
    def backward(
        ctx: Any, grad_soft: Tensor, grad_hard: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradient = _fd.rows_backward(*ctx.saved_tensors, grad_soft, grad_hard, *ctx.options)
        return gradient, None, None, *[None] * ctx.rows


class LogitsLoss(torch.autograd.Function):
    """sum(soft_factor * soft + hard_factor * hard), with its gradient made in the same pass.

    Returns that sum, and soft, hard and metrics themselves without gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        soft_factor: Tensor,
        hard_factor: Tensor,
        with_metrics: bool,
        options: tuple[Any, ...],
        *rows: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        soft, hard, metrics, _, gradient = _fd.rows_forward(
            student, *rows, soft_factor, hard_factor, with_metrics, *options
        )
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(soft, hard, metrics)
        ctx.rows = len(rows)
        loss = (weighted(soft_factor, soft) + weighted(hard_factor, hard)).sum()
        return loss, soft, hard, metrics

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return _scaled(gradient, grad_loss), *[None] * (4 + ctx.rows)


class LinearRowLosses(torch.autograd.Function):
    """(soft, hard, metrics) of each row from a head, whose logits the backward makes again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        chunk_size: int | None,
        with_metrics: bool,
        options: tuple[Any, ...],
        *rows: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = (hidden, weight, bias, *rows)
        soft, hard, metrics, *_ = _fd.linear(
            *inputs, None, None, [False] * 3, chunk_size, with_metrics, *options
        )
        ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(metrics)
        ctx.chunk_size, ctx.options, ctx.rows = chunk_size, options, len(rows)
        return soft, hard, metrics

    @staticmethod
    @_first_order
    def backward(
        ctx: Any, grad_soft: Tensor, grad_hard: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[:3])
        inputs = ctx.saved_tensors  # read once: under checkpointing it is unpacked once
        *_, by_hidden, by_weight, by_bias = _fd.linear(
            *inputs, grad_soft, grad_hard, wanted,
            ctx.chunk_size, False, *ctx.options,
        )  # fmt: skip
        hidden, weight, *_ = inputs
        dtypes = (hidden.dtype, weight.dtype, weight.dtype)
        gradients = (
            gradient.to(dtype)
            for gradient, dtype in zip((by_hidden, by_weight, by_bias), dtypes, strict=True)
        )
        return *_only(wanted, *gradients), None, None, None, *[None] * ctx.rows


class LinearLoss(torch.autograd.Function):
    """sum(soft_factor * soft + hard_factor * hard), with its gradients made in the same pass.

    Returns that sum, and soft, hard and metrics themselves without gradient. ``wanted`` says which
    of the gradients by hidden, weight and bias are made.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        soft_factor: Tensor,
        hard_factor: Tensor,
        wanted: list[bool],
        chunk_size: int | None,
        with_metrics: bool,
        options: tuple[Any, ...],
        *rows: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        soft, hard, metrics, *gradients = _fd.linear(
            hidden, weight, bias, *rows, soft_factor, hard_factor, wanted, chunk_size, with_metrics,
            *options,
        )  # fmt: skip
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(soft, hard, metrics)
        ctx.wanted, ctx.rows = wanted, len(rows)
        ctx.dtypes = (hidden.dtype, weight.dtype, weight.dtype)
        loss = (weighted(soft_factor, soft) + weighted(hard_factor, hard)).sum()
        return loss, soft, hard, metrics

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            _scaled(gradient, grad_loss).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *_only(ctx.wanted, *scaled), *[None] * (6 + ctx.rows)


def _only(wanted: list[bool], *gradients: Tensor) -> list[Tensor | None]:
    return [gradient if want else None for want, gradient in zip(wanted, gradients, strict=True)]


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """gradient * factor, the factor not rounded to the gradient's dtype."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    if torch.compiler.is_compiling():
        return (gradient.to(wide) * factor.to(wide)).to(gradient.dtype)
    if host_sees_data(factor.device):
        value = float(factor)
        return gradient if value == 1.0 else gradient * value
    # With a dimension the factor is wide in the product, which is rounded as it is stored.
    return torch.mul(gradient, factor.to(wide).view(1), out=torch.empty_like(gradient))
