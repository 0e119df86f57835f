"""Who is measured: fastdistill, plain torch, other packages, and the bare GEMMs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

import fastdistill as fd
from fastdistill import reference

from .cases import Case, Inputs
from .limits import GEMMS
from .packages import PACKAGES
from .provider import Loss, Provider, Runner, loss_of


def gradient_runner(loss: Loss, inputs: Inputs) -> Runner:
    """Forward and backward of ``loss(*leaves, teacher)``."""
    leaves = tuple(inputs.leaves.values())

    def run() -> tuple[Tensor, ...]:
        value = loss(*leaves, inputs.teacher)
        return value.detach(), *torch.autograd.grad(value, leaves)

    return run


def _compiled(loss: Loss) -> Loss:
    return torch.compile(loss, dynamic=False, fullgraph=True)


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


def _torch_formula(case: Case) -> Loss:
    return kl_div if case.kind == "logits" else gather_kl


def _has_torch_formula(case: Case) -> bool:
    return case.kind != "linear" and case.divergence == fd.ForwardKL()


OURS = Provider(
    "fastdistill",
    lambda case, inputs: gradient_runner(loss_of(fd, case), inputs),
    role="ours",
    native_gemms=False,
)
TORCH = (
    Provider("torch eager", lambda case, x: gradient_runner(loss_of(reference, case), x)),
    Provider(
        "torch.compile",
        lambda case, x: gradient_runner(_compiled(loss_of(reference, case)), x),
        compiled=True,
    ),
    Provider(
        "torch short formula",
        lambda case, x: gradient_runner(_torch_formula(case), x),
        applies=_has_torch_formula,
        weighed=False,
    ),
    Provider(
        "torch.compile short formula",
        lambda case, x: gradient_runner(_compiled(_torch_formula(case)), x),
        applies=_has_torch_formula,
        weighed=False,
        compiled=True,
    ),
)
PROVIDERS: tuple[Provider, ...] = (OURS, *TORCH, *PACKAGES, *GEMMS)


def find(name: str) -> Provider:
    """The provider of that name."""
    return next(provider for provider in PROVIDERS if provider.name == name)
