"""What a loss reports beside its value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._rows import weighted


@dataclass(frozen=True, eq=False)
class Metrics:
    """Averages over the counted tokens, detached 0-d float64 tensors; None where the teacher cannot
    tell.

    They are averaged with the weights, and over the divisor, of the loss (of ``reduction="mean"``),
    and taken at the loss's temperature. Reading one does not need another pass over the logits.
    """

    soft_loss: Tensor
    """The divergence, in nats, without ``soft_weight`` or T^2."""
    hard_loss: Tensor | None
    """The cross entropy, in nats, where ``hard_weight > 0``."""
    student_entropy: Tensor
    """In nats, over the whole vocabulary."""
    counted: Tensor
    """Number of counted tokens, int64."""
    forward_kl: Tensor | None = None
    """KL(teacher || student) in nats."""
    reverse_kl: Tensor | None = None
    """KL(student || teacher) in nats."""
    acceptance_rate: Tensor | None = None
    """sum min(p, q), the acceptance rate of speculative decoding (arXiv:2211.17192)."""
    top1_agreement: Tensor | None = None
    """Share of tokens whose most likely id is the same; the first one where several tie."""
    teacher_entropy: Tensor | None = None
    """In nats."""
    teacher_mass: Tensor | None = None
    """Probability of the listed ids; top-k and sampled teachers."""
    student_mass: Tensor | None = None
    """Probability that the student gives them."""


# The columns of the kernels' table, in the order of RowMetrics in csrc/row_problem.h.
_COLUMNS = (
    "forward_kl",
    "reverse_kl",
    "acceptance_rate",
    "top1_agreement",
    "teacher_entropy",
    "student_entropy",
    "teacher_mass",
    "student_mass",
)
NEEDS_DENSE_TEACHER = frozenset(_COLUMNS[:5])
NEEDS_LISTED_TEACHER = frozenset(_COLUMNS[6:])


def reduce_metrics(
    soft: Tensor,
    hard: Tensor | None,
    table: Tensor,
    weights: Tensor,
    denominator: Tensor | float,
    *,
    counted: Tensor | None,
    unknown: frozenset[str],
) -> Metrics:
    """Metrics from per-row values (N,) and the kernels' table (N, M), but for the unknown ones."""

    def average(rows: Tensor) -> Tensor:
        return weighted(weights, rows.detach()).sum() / denominator

    averages = {
        name: average(table[:, column])
        for column, name in enumerate(_COLUMNS)
        if name not in unknown
    }
    number = torch.tensor(weights.numel()) if counted is None else counted.sum()
    return Metrics(
        soft_loss=average(soft),
        hard_loss=None if hard is None else average(hard),
        counted=number,
        **averages,
    )
