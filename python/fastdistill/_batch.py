"""The tensors of a call, checked and flattened, with the teacher as the kernels take it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._head import HeadDtypes
from ._native import RowSpec
from ._options import (
    LossOptions,
    check_device,
    check_leading_shape,
    check_positive,
    common_vocab,
)
from ._rows import TeacherTensors
from .divergences import Divergence, ForwardKL
from .metrics import NEEDS_DENSE_TEACHER, NEEDS_LISTED_TEACHER
from .teachers import (
    SampledTeacher,
    Teacher,
    TeacherHead,
    TeacherLogits,
    TopKTeacher,
    retemper,
    tail_mass,
)


class TokenArguments(NamedTuple):
    """The per-token arguments of a loss, as given."""

    labels: Tensor | None
    mask: Tensor | None
    weights: Tensor | None
    num_items: float | Tensor | None


class Batch(NamedTuple):
    """What a loss needs of one batch, after all checks that need no data. N: tokens, flat."""

    teacher: TeacherTensors
    labels: Tensor | None  # (N,) int64, only where the cross entropy is wanted
    counted: Tensor | None  # (N,) bool; None: every token
    weights: Tensor  # (N,) float64; zero where not counted
    denominator: Tensor | float  # of the mean
    entropy: Tensor | None  # (N,) what the kernels' value of a sampled teacher leaves out
    unknown: frozenset[str]  # names of the metrics that the teacher cannot give
    options: tuple[Any, ...]  # RowSpec and HeadDtypes, as the ops take them


def rows_of(batch: Batch) -> tuple[Tensor | None, ...]:
    """The per-token tensors as the ops take them."""
    return *batch.teacher, batch.labels, batch.counted


def prepare(
    options: LossOptions,
    student_shape: tuple[int, ...],
    student: Tensor,
    teacher: Teacher,
    tokens: TokenArguments,
    dtypes: HeadDtypes,
    *,
    with_metrics: bool,
) -> Batch:
    """Check a batch whose student logits have, or would have, ``student_shape``, and flatten it.

    Their dtype and device are those of ``student``.
    """
    leading, student_dtype = tuple(student_shape[:-1]), student.dtype
    _check_tokens(leading, options, tokens)
    _check_devices(teacher, tokens, student.device)
    if isinstance(teacher, (TeacherLogits, TeacherHead)):
        rows = _dense(options, student_shape, teacher)
    else:
        rows = _listed(options, student_shape, student_dtype, teacher)
    if options.soft_weight == 0.0 and not with_metrics:
        rows = _unheard(options, leading, student_dtype, rows)
    labels, counted = tokens.labels, tokens.mask
    if labels is not None:
        kept = labels != options.ignore_index
        counted = kept if counted is None else counted & kept
    weights = _row_weights(leading, tokens.weights, counted, student.device)
    entropy = rows.entropy
    if entropy is not None and counted is not None:
        entropy = torch.where(counted.flatten(), entropy, 0.0)
    return Batch(
        teacher=rows.tensors,
        labels=labels.flatten() if labels is not None and options.hard_weight > 0 else None,
        counted=None if counted is None else counted.flatten(),
        weights=weights,
        denominator=_denominator(weights, tokens.num_items),
        entropy=entropy,
        unknown=_unknown_metrics(options, teacher),
        options=(*rows.spec, *dtypes),
    )


# ---- tokens -----------------------------------------------------------------------------------


def _check_tokens(leading: tuple[int, ...], options: LossOptions, tokens: TokenArguments) -> None:
    labels, mask, weights, num_items = tokens
    for name, tensor in (("labels", labels), ("mask", mask), ("weights", weights)):
        check_leading_shape(name, tensor, leading)
    if labels is not None and labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}")
    if weights is not None and not weights.is_floating_point():
        raise TypeError(f"weights must be floating point, got {weights.dtype}")
    if options.hard_weight > 0 and labels is None:
        raise ValueError(f"hard_weight = {options.hard_weight} needs labels, got None")
    if num_items is not None and options.reduction != "mean":
        raise ValueError(
            f'num_items is the divisor of reduction="mean", got reduction={options.reduction!r}'
        )
    if isinstance(num_items, Tensor):
        if num_items.dim() != 0:
            raise ValueError(f"num_items must be 0-d, got shape {tuple(num_items.shape)}")
    elif num_items is not None:
        check_positive("num_items", num_items)


_TENSORS_OF_TEACHERS = (
    "logits", "hidden", "weight", "bias", "ids", "log_probs", "tail_log_prob", "weights",
)  # fmt: skip


def _check_devices(teacher: Teacher, tokens: TokenArguments, device: torch.device) -> None:
    for name in _TENSORS_OF_TEACHERS:
        check_device(f"teacher {name}", getattr(teacher, name, None), device)
    for name in ("labels", "mask", "weights"):
        check_device(name, getattr(tokens, name), device)


def _row_weights(
    leading: tuple[int, ...],
    weights: Tensor | None,
    counted: Tensor | None,
    device: torch.device,
) -> Tensor:
    """(N,) float64, zero where a token does not count."""
    rows = (
        torch.ones(leading, dtype=torch.float64, device=device)
        if weights is None
        else weights.detach().double()
    )
    return (rows if counted is None else torch.where(counted, rows, 0.0)).flatten()


def _denominator(weights: Tensor, num_items: float | Tensor | None) -> Tensor | float:
    """What the mean divides by; a zero, which no token stands behind, becomes one."""
    total = weights.sum() if num_items is None else num_items
    if not isinstance(total, Tensor):
        return total
    return torch.where(total == 0, torch.ones_like(total), total)


# ---- teachers ---------------------------------------------------------------------------------


class _TeacherRows(NamedTuple):
    tensors: TeacherTensors
    spec: RowSpec
    entropy: Tensor | None = None


def _spec(
    options: LossOptions,
    vocab: int,
    tail: str,
    scale: float = 1.0,
    softcap: float | None = None,
    *,
    sums_to_one: bool = True,
    divergence: Divergence | None = None,
) -> RowSpec:
    chosen = options.divergence if divergence is None else divergence
    assert isinstance(chosen, Divergence)
    return RowSpec(
        divergence=type(chosen).__name__,
        parameters=list(chosen.parameters),
        tail=tail,
        sums_to_one=sums_to_one,
        temperature=float(options.temperature),
        vocab=vocab,
        student_scale=float(options.student_scale),
        student_softcap=float(options.student_softcap or 0.0),
        teacher_scale=float(scale),
        teacher_softcap=float(softcap or 0.0),
    )


def _dense(
    options: LossOptions, student_shape: tuple[int, ...], teacher: TeacherLogits | TeacherHead
) -> _TeacherRows:
    if isinstance(teacher, TeacherHead):
        size, name, values = teacher.weight.shape[0], "hidden", teacher.hidden
        bias = None if teacher.bias is None else teacher.bias.detach()
        tensors = TeacherTensors(values.detach(), teacher.weight.detach(), bias)
    else:
        size, name, values = teacher.logits.shape[-1], "logits", teacher.logits
        tensors = TeacherTensors(values.detach())
    _check_teacher_leading(name, values, student_shape)
    vocab = common_vocab(student_shape[-1], size, teacher.valid_vocab, options.student_valid_vocab)
    return _TeacherRows(tensors, _spec(options, vocab, "bucket", teacher.scale, teacher.softcap))


def _listed(
    options: LossOptions,
    student_shape: tuple[int, ...],
    student_dtype: torch.dtype,
    teacher: TopKTeacher | SampledTeacher,
) -> _TeacherRows:
    _check_teacher_leading("ids", teacher.ids, student_shape)
    vocab = common_vocab(student_shape[-1], None, options.student_valid_vocab)
    entropy = tail_log_prob = None
    if isinstance(teacher, SampledTeacher):
        log_p, entropy = _sampled(options, teacher)
    else:
        log_p, tail_log_prob = _top_k(options, teacher)
        tail_log_prob = (
            None if tail_log_prob is None else tail_log_prob.double().reshape(-1).contiguous()
        )
    wide = torch.float64 if student_dtype == torch.float64 else torch.float32
    slots = teacher.ids.shape[-1]
    ids = torch.where(torch.isneginf(log_p), -1, teacher.ids.to(torch.int64))
    tensors = TeacherTensors(
        ids=ids.reshape(-1, slots).contiguous(),
        log_p=log_p.to(wide).reshape(-1, slots).contiguous(),
        tail_log_prob=tail_log_prob,
    )
    tail, sums_to_one = "zero", False
    if isinstance(teacher, TopKTeacher):
        retempered = teacher.temperature != options.temperature
        tail = teacher.tail
        sums_to_one = tail == "renormalize" or (
            tail != "zero" and (teacher.tail_log_prob is None or retempered)
        )
    return _TeacherRows(tensors, _spec(options, vocab, tail, sums_to_one=sums_to_one), entropy)


def _unheard(
    options: LossOptions, leading: tuple[int, ...], student_dtype: torch.dtype, rows: _TeacherRows
) -> _TeacherRows:
    """A teacher that says nothing, where nobody asks: lists of one empty slot.

    The logits of the real one are then neither read nor made.
    """
    like = next(tensor for tensor in rows.tensors if tensor is not None)
    wide = torch.float64 if student_dtype == torch.float64 else torch.float32
    ids = torch.full((*leading, 1), -1, dtype=torch.int64, device=like.device).view(-1, 1)
    empty = TeacherTensors(ids=ids, log_p=torch.full_like(ids, -math.inf, dtype=wide))
    return _TeacherRows(
        empty, _spec(options, rows.spec.vocab, "renormalize", divergence=ForwardKL())
    )


def _check_teacher_leading(name: str, values: Tensor, student_shape: tuple[int, ...]) -> None:
    if values.shape[:-1] != tuple(student_shape[:-1]):
        raise ValueError(
            f"teacher {name} must have the student's leading shape {tuple(student_shape[:-1])}, "
            f"got {tuple(values.shape)}"
        )


def _top_k(options: LossOptions, teacher: TopKTeacher) -> tuple[Tensor, Tensor | None]:
    """(log_p, tail_log_prob) at the temperature of the loss."""
    assert isinstance(options.divergence, Divergence)
    if teacher.tail == "zero" and options.divergence.needs_teacher_support:
        raise ValueError(
            f'{options.divergence} is infinite where the teacher is zero: tail="zero" cannot be '
            'used with it; use tail="bucket"'
        )
    ratio = teacher.temperature / options.temperature
    log_probs = teacher.log_probs.detach().masked_fill(teacher.ids == -1, -math.inf)
    tail = teacher.tail_log_prob
    if teacher.tail == "renormalize":
        return log_probs * ratio, None
    if ratio == 1.0:
        return log_probs, tail_mass(log_probs) if tail is None else tail.detach()
    if tail is None:
        raise ValueError(
            f"the tail mass of a teacher listed at temperature {teacher.temperature} is not known "
            f"at temperature {options.temperature}: give tail_log_prob or use "
            'tail="renormalize"'
        )
    return retemper(log_probs, ratio, tail.detach()), tail.detach()


def _sampled(options: LossOptions, teacher: SampledTeacher) -> tuple[Tensor, Tensor]:
    """(log weights, -sum w log w): the latter completes the value to the cross entropy."""
    if not isinstance(options.divergence, ForwardKL):
        raise ValueError(
            "SampledTeacher needs a divergence that is linear in the teacher (ForwardKL), "
            f"got {options.divergence}"
        )
    if options.temperature != 1.0:
        raise ValueError(
            "SampledTeacher weights are probabilities at temperature 1, got temperature "
            f"{options.temperature}"
        )
    weights = torch.where(teacher.ids == -1, 0.0, teacher.weights.detach().double())
    return weights.log(), -torch.special.xlogy(weights, weights).sum(-1).reshape(-1)


def _unknown_metrics(options: LossOptions, teacher: Teacher) -> frozenset[str]:
    if isinstance(teacher, (TeacherLogits, TeacherHead)):
        return NEEDS_LISTED_TEACHER
    # Renormalised at another temperature, only the ratios of the listed probabilities are known.
    if isinstance(teacher, TopKTeacher) and teacher.tail == "renormalize":
        known = teacher.temperature == options.temperature
        return NEEDS_DENSE_TEACHER if known else NEEDS_DENSE_TEACHER | {"teacher_mass"}
    return NEEDS_DENSE_TEACHER
