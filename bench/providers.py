"""Who is measured: fastdistill, plain torch, other packages, and what nobody can do without."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

import fastdistill as fd
from fastdistill import reference
from fastdistill.teachers import Teacher

from .cases import Case
from .gemms import GEMMS
from .limits import FRESH_GRADIENT
from .packages import PACKAGES
from .provider import OURS, Loss, Provider, by_loss, loss_of


def kl_div(student_logits: Tensor, teacher: fd.TeacherLogits) -> Tensor:
    """Forward KL as it is usually written."""
    log_q = F.log_softmax(student_logits.float(), -1)
    log_p = F.log_softmax(teacher.logits.float(), -1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def gather_kl(student_logits: Tensor, teacher: fd.TopKTeacher) -> Tensor:
    """Forward KL to a top-k teacher whose tail is one bucket: a log-sum-exp and a gather."""
    x = student_logits.float()
    log_q = x.gather(-1, teacher.ids) - x.logsumexp(-1, keepdim=True)
    p, q = teacher.log_probs.exp(), log_q.exp()
    tail_p, tail_q = 1 - p.sum(-1), 1 - q.sum(-1)
    listed = (p * (teacher.log_probs - log_q)).sum(-1)
    return (listed + tail_p * (tail_p / tail_q).log()).mean()


def cross_entropy(hidden: Tensor, weight: Tensor, _: Teacher, labels: Tensor) -> Tensor:
    """Of a head with hard labels, as it is usually written."""
    return F.cross_entropy(F.linear(hidden, weight).float(), labels)


def after_heads(formula: Loss) -> Loss:
    """A formula of logits, behind the heads that make them, on the tokens that count."""

    def loss(
        hidden: Tensor, weight: Tensor, teacher: Teacher, *, mask: Tensor | None = None
    ) -> Tensor:
        rows = slice(None) if mask is None else mask
        if isinstance(teacher, fd.TeacherHead):
            teacher = fd.TeacherLogits(F.linear(teacher.hidden[rows], teacher.weight))
        elif isinstance(teacher, fd.TeacherLogits):
            teacher = fd.TeacherLogits(teacher.logits[rows])
        return formula(F.linear(hidden[rows], weight), teacher)

    return loss


def reference_formula(case: Case) -> Loss:
    """The formula of the reference; of hard labels it would take the teacher's too."""
    return cross_entropy if case.kind == "linear_labels" else loss_of(reference, case)


def short_formula(case: Case) -> Loss:
    """Forward KL in as few lines of torch as are common."""
    formula: Loss = gather_kl if case.has_list else kl_div
    return after_heads(formula) if case.has_head else formula


def _has_short_formula(case: Case) -> bool:
    return case.kind != "linear_labels" and case.divergence == fd.ForwardKL()


def _has_one_shape(case: Case) -> bool:
    """Rows that are chosen by a mask are as many as the data say: no graph for one shape."""
    return _has_short_formula(case) and not case.half_masked


def _compiled(formula: Loss) -> Loss:
    return torch.compile(formula, dynamic=False, fullgraph=True)


TORCH = (
    Provider("torch eager", by_loss(reference_formula)),
    Provider(
        "torch.compile", by_loss(lambda case: _compiled(reference_formula(case))), compiled=True
    ),
    Provider("torch short formula", by_loss(short_formula), applies=_has_short_formula),
    Provider(
        "torch.compile short formula",
        by_loss(lambda case: _compiled(short_formula(case))),
        applies=_has_one_shape,
        compiled=True,
    ),
)
PROVIDERS: tuple[Provider, ...] = (OURS, *TORCH, *PACKAGES, *GEMMS, FRESH_GRADIENT)


def find(name: str) -> Provider:
    """The provider of that name."""
    return next(provider for provider in PROVIDERS if provider.name == name)
