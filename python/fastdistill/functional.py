"""The two loss functions: arguments in, checked; rows through the kernels; a reduced loss out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._autograd import LinearLoss, LinearRowLosses, LogitsLoss, RowLosses
from ._batch import Batch, TokenArguments, prepare, rows_of
from ._head import HeadDtypes
from ._options import FLOATING, LossOptions, Reduction, check_chunking, check_device
from ._rows import weighted
from .divergences import Divergence, ForwardKL
from .metrics import Metrics, reduce_metrics
from .teachers import Teacher, TeacherLogits, as_teacher


def distillation_loss(
    student_logits: Tensor,
    teacher: Teacher | Tensor,
    labels: Tensor | None = None,
    *,
    divergence: Divergence | str = ForwardKL(),  # noqa: B008  (immutable)
    temperature: float = 1.0,
    soft_weight: float = 1.0,
    hard_weight: float = 0.0,
    scale_by_temperature_squared: bool = False,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    num_items: float | Tensor | None = None,
    student_softcap: float | None = None,
    student_scale: float = 1.0,
    student_valid_vocab: int | None = None,
    return_metrics: bool = False,
) -> Any:
    """Distillation loss between student logits and a teacher, in nats per token.

    A row's loss is ``soft_weight * divergence + hard_weight * cross_entropy``, the divergence at
    ``temperature`` and the cross entropy with ``labels`` always at 1. Gradients flow to
    ``student_logits`` alone.

    Args:
        student_logits: ``(..., V)`` float32, bfloat16, float16 or float64.
        teacher: a teacher, or ``(..., V)`` logits.
        labels: ``(...)`` int64, aligned with the logits (nothing is shifted).
        divergence: an instance, or a name such as ``"forward_kl"``.
        temperature: > 0; divides the student's and a dense teacher's logits.
        soft_weight: weight of the divergence; at 0, and without metrics, the teacher is not read.
        hard_weight: weight of the cross entropy; needs ``labels``.
        scale_by_temperature_squared: multiply the divergence by T^2 (Hinton, arXiv:1503.02531).
        mask: ``(...)`` bool, True where the token counts.
        ignore_index: tokens whose label equals it do not count.
        weights: ``(...)`` float, per-token weight of the whole row loss; no gradient flows to it.
        reduction: ``"mean"`` divides by the counted weight or by ``num_items``; ``"sum"``;
            ``"none"`` returns the leading shape.
        num_items: number or 0-d tensor that ``"mean"`` divides by.
        student_softcap: student logits are ``c * tanh(scale * logits / c)``.
        student_scale: logit scale, applied before the softcap.
        student_valid_vocab: ids ``>= student_valid_vocab`` do not exist, on either side.
        return_metrics: also return :class:`Metrics`, at the cost of one more sweep over each row.

    Returns:
        The loss, float32 (float64 for float64 logits), or ``(loss, Metrics)``. The loss is zero,
        with zero gradients, if no token counts.

    Raises:
        ValueError: shapes, ranges, devices and contradictory arguments. On a CUDA device a label or
            a teacher's id out of range makes its row NaN instead: the host does not wait to see it.
        TypeError: wrong types.
        RuntimeError: in a backward pass that is to be differentiated (``create_graph=True``).
    """
    options = LossOptions(
        divergence, temperature, soft_weight, hard_weight, scale_by_temperature_squared,
        ignore_index, reduction, student_softcap, student_scale, student_valid_vocab,
    )  # fmt: skip
    _check_floating("student_logits", student_logits)
    teacher = as_teacher(teacher)
    if isinstance(teacher, TeacherLogits):
        _check_same_shape(student_logits, teacher, student_valid_vocab)
    tokens = TokenArguments(labels, mask, weights, num_items)
    dtypes = HeadDtypes(_autocast_dtype(student_logits), None)
    batch = prepare(
        options, student_logits.shape, student_logits, teacher, tokens, dtypes,
        with_metrics=return_metrics,
    )  # fmt: skip
    trained = torch.is_grad_enabled() and student_logits.requires_grad
    # A float16 gradient must be scaled before it is rounded: it is made in the backward.
    if reduction == "none" or not trained or student_logits.dtype == torch.float16:
        soft, hard, table = RowLosses.apply(  # type: ignore[no-untyped-call]
            student_logits, return_metrics, batch.options, *rows_of(batch)
        )
        loss = _reduce(options, batch, soft, hard, student_logits.shape[:-1])
    else:
        soft_factor, hard_factor = _row_factors(options, batch)
        loss, soft, hard, table = LogitsLoss.apply(  # type: ignore[no-untyped-call]
            student_logits, soft_factor, hard_factor, return_metrics, batch.options, *rows_of(batch)
        )
        loss = _add_entropy(loss, batch, soft_factor)
    loss = loss.to(_loss_dtype(student_logits))
    return (loss, _metrics(batch, soft, hard, table)) if return_metrics else loss


def linear_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher: Teacher | Tensor,
    labels: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    chunk_size: int | None = None,
    logits_dtype: torch.dtype | None = None,
    divergence: Divergence | str = ForwardKL(),  # noqa: B008  (immutable)
    temperature: float = 1.0,
    soft_weight: float = 1.0,
    hard_weight: float = 0.0,
    scale_by_temperature_squared: bool = False,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    num_items: float | Tensor | None = None,
    student_softcap: float | None = None,
    student_scale: float = 1.0,
    student_valid_vocab: int | None = None,
    return_metrics: bool = False,
) -> Any:
    """:func:`distillation_loss` of ``student_hidden @ student_weight.T + student_bias``.

    No (N, V) tensor exists, in forward or backward, for student or teacher: the loss and the
    gradients that are asked for are made a chunk of rows at a time. Rows that do not count are
    dropped before any GEMM; on a CUDA device, where the host would have to wait to know them, they
    pass through the GEMMs.

    Args:
        student_hidden: ``(..., D_s)``, the last hidden states.
        student_weight: ``(V, D_s)``, the head; of ``student_hidden``'s dtype unless autocast is on.
        teacher, labels: as for :func:`distillation_loss`.
        student_bias: ``(V,)``.
        chunk_size: rows per chunk; None chooses from N, V and a memory budget.
        logits_dtype: None leaves the logits in the dtype of the GEMM; ``torch.float32`` asks for
            logits that are not rounded to a half precision.

    The other arguments, the result and the errors are those of :func:`distillation_loss`.
    """
    options = LossOptions(
        divergence, temperature, soft_weight, hard_weight, scale_by_temperature_squared,
        ignore_index, reduction, student_softcap, student_scale, student_valid_vocab,
    )  # fmt: skip
    autocast = _autocast_dtype(student_hidden)
    _check_head(student_hidden, student_weight, student_bias, autocast)
    check_chunking(chunk_size, logits_dtype)
    shape = (*student_hidden.shape[:-1], student_weight.shape[0])
    tokens = TokenArguments(labels, mask, weights, num_items)
    dtypes = HeadDtypes(autocast, logits_dtype)
    batch = prepare(
        options, shape, student_weight, as_teacher(teacher), tokens, dtypes,
        with_metrics=return_metrics,
    )  # fmt: skip
    head = (student_hidden, student_weight, student_bias)
    if reduction == "none":
        soft, hard, table = LinearRowLosses.apply(  # type: ignore[no-untyped-call]
            *head, chunk_size, return_metrics, batch.options, *rows_of(batch)
        )
        loss = _reduce(options, batch, soft, hard, shape[:-1])
    else:
        wanted = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in head]
        soft_factor, hard_factor = _row_factors(options, batch)
        loss, soft, hard, table = LinearLoss.apply(  # type: ignore[no-untyped-call]
            *head, soft_factor, hard_factor, wanted, chunk_size, return_metrics, batch.options,
            *rows_of(batch),
        )  # fmt: skip
        loss = _add_entropy(loss, batch, soft_factor)
    loss = loss.to(_loss_dtype(student_weight))
    return (loss, _metrics(batch, soft, hard, table)) if return_metrics else loss


# ---- checks -----------------------------------------------------------------------------------


def _check_floating(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {tensor.dtype}")
    if tensor.dim() < 1 or tensor.shape[-1] < 1:
        raise ValueError(
            f"{name} must have shape (..., size) with size >= 1, got {tuple(tensor.shape)}"
        )


def _check_same_shape(student: Tensor, teacher: TeacherLogits, valid: int | None) -> None:
    """Without a valid_vocab the two shapes are the same; the sizes of padded heads may differ."""
    padded = valid is not None or teacher.valid_vocab is not None
    end = -1 if padded else None
    if student.shape[:end] != teacher.logits.shape[:end]:
        raise ValueError(
            "student_logits and teacher logits must have the same shape, "
            f"got {tuple(student.shape)} and {tuple(teacher.logits.shape)}"
        )


def _check_head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, autocast: torch.dtype | None
) -> None:
    _check_floating("student_hidden", hidden)
    _check_floating("student_weight", weight)
    check_device("student_weight", weight, hidden.device)
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            "student_hidden (..., D) and student_weight (V, D) must have the same D, "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if hidden.dtype != weight.dtype and autocast is None:
        raise TypeError(
            "student_hidden and student_weight must have the same dtype outside autocast, "
            f"got {hidden.dtype} and {weight.dtype}"
        )
    if bias is None:
        return
    _check_floating("student_bias", bias)
    check_device("student_bias", bias, hidden.device)
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"student_bias must have shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}"
        )


def _autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _loss_dtype(student: Tensor) -> torch.dtype:
    return torch.float64 if student.dtype == torch.float64 else torch.float32


# ---- reduction --------------------------------------------------------------------------------


def _row_factors(options: LossOptions, batch: Batch) -> tuple[Tensor, Tensor]:
    """d loss / d soft and d loss / d hard of each row (N,), for a reduced loss."""
    scale = batch.weights / (batch.denominator if options.reduction == "mean" else 1.0)
    return options.soft_factor * scale, options.hard_weight * scale


def _add_entropy(loss: Tensor, batch: Batch, soft_factor: Tensor) -> Tensor:
    """Completes the sum over rows where the teacher is a sample."""
    return loss if batch.entropy is None else loss + (soft_factor * batch.entropy).sum()


def _soft(batch: Batch, soft: Tensor) -> Tensor:
    """The divergence of each row, completed where the teacher is a sample."""
    return soft if batch.entropy is None else soft + batch.entropy


def _reduce(
    options: LossOptions, batch: Batch, soft: Tensor, hard: Tensor, leading: tuple[int, ...]
) -> Tensor:
    """The loss from the values of the rows (N,)."""
    rows = weighted(options.soft_factor, _soft(batch, soft)) + weighted(options.hard_weight, hard)
    rows = weighted(batch.weights, rows)
    if options.reduction == "none":
        return rows.reshape(leading)
    total = rows.sum()
    return total if options.reduction == "sum" else total / batch.denominator


def _metrics(batch: Batch, soft: Tensor, hard: Tensor, table: Tensor) -> Metrics:
    return reduce_metrics(
        _soft(batch, soft),
        hard if batch.labels is not None else None,
        table,
        batch.weights,
        batch.denominator,
        counted=batch.counted,
        unknown=batch.unknown,
    )
