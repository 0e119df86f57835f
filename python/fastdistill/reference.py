"""The losses in plain torch, on materialised logits: what the kernels are tested and timed against.

Arguments and losses are those of :mod:`fastdistill.functional`, but for metrics and for the checks
of the tensors; differentiable by autograd, at any floating dtype (half precisions are widened to
float32 first). Meant to be read, not to be fast.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._options import LossOptions, common_vocab
from .divergences import Divergence
from .teachers import (
    SampledTeacher,
    Teacher,
    TeacherHead,
    TeacherLogits,
    TopKTeacher,
    as_teacher,
    retemper,
    tail_mass,
)


def transform(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """``c * tanh(scale * logits / c)``, in float32 at least."""
    x = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
    return x if softcap is None else softcap * torch.tanh(x / softcap)


def teacher_logits(teacher: TeacherLogits | TeacherHead) -> Tensor:
    """The teacher's logits (..., V) before scale and softcap."""
    if isinstance(teacher, TeacherHead):
        return F.linear(teacher.hidden, teacher.weight, teacher.bias)
    return teacher.logits


def _unlisted(ids: Tensor, vocab: int) -> Tensor:
    """(..., V) bool, True where no slot lists the token."""
    listed = torch.zeros(*ids.shape[:-1], vocab + 1, dtype=torch.bool, device=ids.device)
    slots = torch.where(ids < 0, vocab, ids).long()
    return ~listed.scatter(-1, slots, True)[..., :vocab]


def _top_k_rows(teacher: TopKTeacher, temperature: float, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """(log_p, log_q) over the categories that the teacher's tail policy makes."""
    ratio = teacher.temperature / temperature
    ids, log_p = teacher.ids.long(), teacher.log_probs.to(log_q.dtype)
    empty = (ids < 0) | torch.isneginf(log_p)
    log_p = log_p.masked_fill(empty, -math.inf)
    slots = ids.masked_fill(empty, 0)
    listed_q = log_q.gather(-1, slots).masked_fill(empty, -math.inf)
    if teacher.tail == "renormalize":
        return (log_p * ratio).log_softmax(-1), listed_q.log_softmax(-1)
    tail = teacher.tail_log_prob
    log_tail = (tail_mass(log_p) if tail is None else tail).to(log_q.dtype)
    if ratio != 1.0:
        log_p = retemper(log_p, ratio, log_tail).to(log_q.dtype)
    unlisted = _unlisted(ids.masked_fill(empty, -1), log_q.shape[-1])
    if teacher.tail == "bucket":
        tail_q = log_q.masked_fill(~unlisted, -math.inf).logsumexp(-1, keepdim=True)
        tail_p = log_tail.unsqueeze(-1).masked_fill(~unlisted.any(-1, keepdim=True), -math.inf)
        return torch.cat([log_p, tail_p], -1), torch.cat([listed_q, tail_q], -1)
    share = log_tail.unsqueeze(-1) - unlisted.sum(-1, keepdim=True).to(log_q.dtype).log()
    rest = torch.full_like(log_q, -math.inf) if teacher.tail == "zero" else share.expand_as(log_q)
    rest = torch.where(unlisted, rest, -math.inf)
    padded = torch.cat([rest, torch.full_like(rest[..., :1], -math.inf)], -1)
    index = slots.masked_fill(empty, log_q.shape[-1])
    return padded.scatter(-1, index, log_p)[..., :-1], log_q


def row_divergence(
    divergence: Divergence, teacher: Teacher, temperature: float, x: Tensor, valid: int | None
) -> Tensor:
    """Divergence of each row (...), given the student's transformed logits x (..., V)."""
    if isinstance(teacher, SampledTeacher):
        log_q = torch.log_softmax(x[..., :valid], -1)
        weights = torch.where(teacher.ids < 0, 0.0, teacher.weights).to(x.dtype)
        return -(weights * log_q.gather(-1, teacher.ids.long().clamp_min(0))).sum(-1)
    if isinstance(teacher, TopKTeacher):
        log_q = torch.log_softmax(x[..., :valid] / temperature, -1)
        return divergence(*_top_k_rows(teacher, temperature, log_q))
    logits = teacher_logits(teacher).detach()
    vocab = common_vocab(x.shape[-1], logits.shape[-1], teacher.valid_vocab, valid)
    y = transform(logits[..., :vocab], teacher.scale, teacher.softcap).to(x.dtype)
    log_p = torch.log_softmax(y / temperature, -1)
    return divergence(log_p, torch.log_softmax(x[..., :vocab] / temperature, -1))


def _real_vocab(student: int, teacher: Teacher, valid: int | None) -> int:
    if isinstance(teacher, (TeacherLogits, TeacherHead)):
        return common_vocab(student, teacher_logits(teacher).shape[-1], teacher.valid_vocab, valid)
    return common_vocab(student, None, valid)


def distillation_loss(
    student_logits: Tensor,
    teacher: Teacher | Tensor,
    labels: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    num_items: float | Tensor | None = None,
    **config: Any,
) -> Tensor:
    """:func:`fastdistill.distillation_loss` in plain torch."""
    options = LossOptions(**config)
    teacher = as_teacher(teacher)
    assert isinstance(options.divergence, Divergence)
    x = transform(student_logits, options.student_scale, options.student_softcap)
    valid = options.student_valid_vocab
    rows = options.soft_factor * row_divergence(
        options.divergence, teacher, options.temperature, x, valid
    )
    counted = torch.ones_like(rows, dtype=torch.bool) if mask is None else mask
    if labels is not None:
        counted = counted & (labels != options.ignore_index)
        if options.hard_weight > 0:
            vocab = _real_vocab(x.shape[-1], teacher, valid)
            log_q = torch.log_softmax(x[..., :vocab], -1)
            target = torch.where(counted, labels, 0).unsqueeze(-1)
            rows = rows - options.hard_weight * log_q.gather(-1, target).squeeze(-1)
    row_weights = torch.ones_like(rows) if weights is None else weights.to(rows.dtype)
    row_weights = torch.where(counted, row_weights, 0.0)
    rows = torch.where(counted, rows, 0.0) * row_weights
    if options.reduction == "none":
        return rows
    if options.reduction == "sum":
        return rows.sum()
    total = row_weights.sum() if num_items is None else torch.as_tensor(num_items)
    return rows.sum() / torch.where(total == 0, 1.0, total).to(rows.dtype)


def linear_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher: Teacher | Tensor,
    labels: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    **config: Any,
) -> Tensor:
    """:func:`fastdistill.linear_distillation_loss` in plain torch: it materialises all logits."""
    config = {k: v for k, v in config.items() if k not in ("chunk_size", "logits_dtype")}
    logits = F.linear(student_hidden, student_weight, student_bias)
    return distillation_loss(logits, teacher, labels, **config)
