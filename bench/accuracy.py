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
from .document import ROOT, replace_block

ROWS = 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOSSES = (fd.distillation_loss, reference.distillation_loss)
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
    """A table whose cells are the error of fastdistill and, in brackets, that of torch eager."""
    lines = [
        f"| divergence | dtype | {' | '.join(f'value, {name}' for name in REGIMES)} | gradient |",
        f"|---|---|{'--:|' * (len(REGIMES) + 1)}",
    ]
    inputs = [regime(vocab) for regime in REGIMES.values()]
    for divergence, dtype in itertools.product(DIVERGENCES, DTYPES):
        ours, torchs = (
            [worst(loss, divergence, dtype, pair) for pair in inputs] for loss in LOSSES
        )
        pairs = [(own[0], other[0]) for own, other in zip(ours, torchs, strict=True)]
        pairs.append((max(own[1] for own in ours), max(other[1] for other in torchs)))
        cells = " | ".join(f"{own:.0e} ({other:.0e})" for own, other in pairs)
        lines.append(f"| {divergence} | {str(dtype).removeprefix('torch.')} | {cells} |")
    lines += [
        "",
        "Worst relative error against float64 of the same rounded logits, in brackets that of the "
        f"same formula in torch eager; {ROWS} rows, V = {vocab}. A gradient's error is relative to "
        "the largest element of its row, the worst of all kinds of input. "
        "`python -m bench accuracy` writes this table.",
    ]
    return "\n".join(lines)


def update(vocab: int) -> None:
    """Write the table into ARCHITECTURE.md, and print it."""
    table = markdown(vocab)
    replace_block(ROOT / "ARCHITECTURE.md", "accuracy", table)
    print(table)
