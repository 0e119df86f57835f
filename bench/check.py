"""What is right: the reference in float64, and how far a result is from it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdistill import reference
from fastdistill.teachers import Teacher

from .cases import CPU, DISTINCT_ROWS, Case, build_inputs
from .provider import Result, loss_of

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float64: 1e-9}
"""Above it a result is that of another formula; below it, the precision of the provider."""


class Errors(NamedTuple):
    """Relative to the largest true magnitude."""

    value: float
    gradient: float  # the worst of the leaves


def double(teacher: Teacher) -> Teacher:
    """The same teacher, computed with in float64."""
    wide: dict[str, Any] = {
        field.name: value.double()
        for field in fields(teacher)
        if isinstance(value := getattr(teacher, field.name), Tensor) and value.is_floating_point()
    }
    return replace(teacher, **wide)


def truth(case: Case, device: torch.device = CPU) -> Result:
    """Loss and gradients in float64; of the leaves that have rows, those of the distinct rows."""
    inputs = build_inputs(replace(case, rows=DISTINCT_ROWS), device)
    leaves = {name: x.detach().double().requires_grad_() for name, x in inputs.leaves.items()}
    loss = loss_of(reference, case)(**leaves, teacher=double(inputs.teacher))
    gradients = torch.autograd.grad(loss, tuple(leaves.values()))
    share = DISTINCT_ROWS / case.rows  # of a row in the mean over all
    return loss.detach(), *(
        gradient if name == "student_weight" else gradient * share
        for name, gradient in zip(leaves, gradients, strict=True)
    )


def relative_error(value: Tensor, true: Tensor) -> float:
    """Largest error over the largest true magnitude; the rows of ``true`` repeat in ``value``."""
    parts = torch.split(value, true.shape[0]) if true.dim() else (value,)
    worst = max(float((part.double() - true).abs().max()) for part in parts)
    return worst / max(float(true.abs().max()), 1e-300)


def errors(result: Result, true: Result) -> Errors:
    """How far a result of any number of rows is from the truth of the distinct ones."""
    value, *gradients = (relative_error(*pair) for pair in zip(result, true, strict=True))
    return Errors(value, max(gradients))


def is_right(found: Errors, dtype: torch.dtype) -> bool:
    """Whether the errors can be those of rounding. NaN is not."""
    return all(error <= TOLERANCE[dtype] for error in found)
