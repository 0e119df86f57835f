"""Worst errors of value and gradient against float64, by divergence, dtype and kind of input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

import fastdistill as fd
from fastdistill import reference

from .cases import DIVERGENCES

ROWS = 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOSSES = {"fastdistill": fd.distillation_loss, "torch eager": reference.distillation_loss}
Pair = tuple[Tensor, Tensor]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def spread(vocab: int) -> Pair:
    """Student and teacher logits (ROWS, V), uniform in +-3."""
    logits = 6 * torch.rand(2, ROWS, vocab, generator=_generator()) - 3
    return logits[0], logits[1]


def confident(vocab: int) -> Pair:
    """Normal logits whose extremes are about +-30: few tokens have nearly all of the mass."""
    logits = 7.5 * torch.randn(2, ROWS, vocab, generator=_generator())
    return logits[0], logits[1]


def near(kl: float) -> Callable[[int], Pair]:
    """A student whose logits are the teacher's and noise of variance 2 kl: that is their KL."""

    def logits(vocab: int) -> Pair:
        teacher, noise = torch.randn(2, ROWS, vocab, generator=_generator())
        return 2 * teacher + math.sqrt(2 * kl) * noise, 2 * teacher

    return logits


REGIMES: dict[str, Callable[[int], Pair]] = {
    "±3": spread,
    "±30": confident,
    **{f"KL 1e-{n}": near(10.0**-n) for n in range(2, 6)},
}


def _rows(loss: Callable[..., Tensor], student: Tensor, teacher: Tensor, **config: object) -> Pair:
    """Values (N,) and gradients (N, V) of the rows."""
    student = student.detach().requires_grad_()
    values = loss(student, fd.TeacherLogits(teacher), reduction="none", **config)
    return values.detach(), torch.autograd.grad(values.sum(), student)[0]


def worst(
    loss: Callable[..., Tensor], divergence: fd.Divergence, dtype: torch.dtype, pair: Pair
) -> tuple[float, float]:
    """Largest relative error of the rows' values, and of gradients by the largest of their row."""
    student, teacher = (logits.to(dtype) for logits in pair)
    values, gradients = _rows(loss, student, teacher, divergence=divergence)
    true_values, true_gradients = _rows(
        reference.distillation_loss, student.double(), teacher.double(), divergence=divergence
    )
    by_value = (values.double() - true_values).abs() / true_values.abs()
    by_row = (gradients.double() - true_gradients).abs().amax(-1) / true_gradients.abs().amax(-1)
    return float(by_value.max()), float(by_row.max())


def markdown(vocab: int) -> str:
    """A table; a cell is the error of the value, then that of the gradient."""
    lines = [
        f"Worst relative errors (value, gradient) against float64 of the same rounded logits, "
        f"{ROWS} rows, V = {vocab}.\n",
        f"| divergence | dtype | computed by | {' | '.join(REGIMES)} |",
        f"|---|---|---|{'---|' * len(REGIMES)}",
    ]
    inputs = [regime(vocab) for regime in REGIMES.values()]
    for divergence, dtype, (name, loss) in itertools.product(DIVERGENCES, DTYPES, LOSSES.items()):
        errors = (worst(loss, divergence, dtype, pair) for pair in inputs)
        cells = " | ".join(f"{value:.0e}, {gradient:.0e}" for value, gradient in errors)
        lines.append(f"| {divergence} | {str(dtype).removeprefix('torch.')} | {name} | {cells} |")
    return "\n".join(lines)
