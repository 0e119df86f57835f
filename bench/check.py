"""What is right: the reference in float64, and how far a result is from it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastdistill as fd
from fastdistill import reference
from fastdistill.teachers import Teacher

from .cases import Case
from .inputs import Inputs
from .provider import Result, options_of

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float64: 1e-9}
"""Above it a result is that of another formula; below it, the precision of the provider."""

_PANEL = 8192
"""Tokens of a head that are held in float64 at a time."""


class Truth(NamedTuple):
    """Loss and gradients in float64; by what has rows, those of the distinct ones."""

    loss: Tensor
    by_rows: Tensor | None  # by logits (distinct, V) or hidden states (distinct, D)
    by_weight: tuple[Tensor, Tensor] | None  # its factors: (distinct, V).T @ (distinct, D)


class Errors(NamedTuple):
    """Relative to the largest true magnitude."""

    value: float
    gradient: float | None  # the worst of the leaves


# ---- truth ------------------------------------------------------------------------------------


def _panels(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(weight), _PANEL):
        panel = slice(start, start + _PANEL)
        yield panel, weight[panel].double()


def wide_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """``hidden @ weight.T`` in float64, which the weight is never as a whole."""
    hidden = hidden.double()
    return torch.cat([hidden @ panel.t() for _, panel in _panels(weight)], -1)


def _by_hidden(grad_logits: Tensor, weight: Tensor) -> Tensor:
    products = (grad_logits[:, panel] @ rows for panel, rows in _panels(weight))
    return functools.reduce(torch.add, products)


def wide_teacher(teacher: Teacher, rows: int) -> Teacher:
    """The teacher of the first rows, in float64; a head is replaced by its logits."""
    if isinstance(teacher, fd.TeacherHead):
        return fd.TeacherLogits(wide_logits(teacher.hidden[:rows], teacher.weight))
    changed: dict[str, Any] = {
        field.name: value[:rows].double() if value.is_floating_point() else value[:rows]
        for field in fields(teacher)
        if isinstance(value := getattr(teacher, field.name), Tensor)
    }
    return replace(teacher, **changed)


def truth(case: Case, inputs: Inputs) -> Truth:
    """The truth of a case: a head's is that of its logits, and two products."""
    rows = case.distinct
    first, *weights = (leaf.detach() for leaf in inputs.leaves.values())
    first = first[:rows]
    logits = wide_logits(first, weights[0]) if case.has_head else first.double()
    logits.requires_grad_()
    labels = inputs.tokens.get("labels")
    options = options_of(replace(case, chunk_size=None))
    loss = reference.distillation_loss(
        logits, wide_teacher(inputs.teacher, rows), None if labels is None else labels[:rows],
        **options,
    )  # fmt: skip
    if not case.backward:
        return Truth(loss.detach(), None, None)
    (grad_logits,) = torch.autograd.grad(loss, logits)
    share = rows / case.counted  # of a row in the mean over all
    if not case.has_head:
        return Truth(loss.detach(), share * grad_logits, None)
    by_hidden = share * _by_hidden(grad_logits, weights[0])
    by_weight = None if case.frozen else (grad_logits, first.double())
    return Truth(loss.detach(), by_hidden, by_weight)


# ---- errors -----------------------------------------------------------------------------------


def _relative(worst: Tensor, largest: Tensor) -> float:
    return float(worst) / max(float(largest), 1e-300)


def _row_error(value: Tensor, true: Tensor, mask: Tensor | None) -> float:
    """Of (N, ...) against the rows that repeat in it; where none counts the truth is zero."""
    counts = torch.ones(len(value), dtype=torch.bool) if mask is None else mask
    size = true.shape[0]
    worst = [
        (part.double() - true * counted.to(true).unsqueeze(-1)).abs().max()
        for part, counted in zip(value.split(size), counts.split(size), strict=True)
    ]
    return _relative(torch.stack(worst).max(), true.abs().max())


def _weight_error(value: Tensor, factors: tuple[Tensor, Tensor]) -> float:
    """Of (V, D) against the product, a panel of the vocabulary at a time."""
    grad_logits, hidden = factors
    worst, largest = [], []
    for panel, part in _panels(value):
        true = grad_logits[:, panel].t() @ hidden
        worst.append((part - true).abs().max())
        largest.append(true.abs().max())
    return _relative(torch.stack(worst).max(), torch.stack(largest).max())


def errors(result: Result, true: Truth, mask: Tensor | None = None) -> Errors:
    """How far a result of any number of rows is from the truth of the distinct ones."""
    value, *gradients = result
    by_value = _relative((value.double() - true.loss).abs(), true.loss.abs())
    if true.by_rows is None:
        return Errors(by_value, None)
    found = [_row_error(gradients[0], true.by_rows, mask)]
    if true.by_weight is not None:
        found.append(_weight_error(gradients[1], true.by_weight))
    return Errors(by_value, float(torch.tensor(found, dtype=torch.float64).max()))  # NaN stays NaN


def is_right(found: Errors, dtype: torch.dtype) -> bool:
    """Whether the errors can be those of rounding. NaN is not."""
    return all(error <= TOLERANCE[dtype] for error in found if error is not None)
