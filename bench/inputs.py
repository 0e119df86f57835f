"""The tensors of a case: logits or hidden states and heads, a teacher, labels and a mask."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import fastdistill as fd
from fastdistill.teachers import Teacher

from . import text
from .cases import DISTINCT_ROWS, Case

CPU = torch.device("cpu")

_POOL = (1 << 24) - 3
"""Normal numbers that a weight repeats: a prime, so that no two of its rows are the same."""


@dataclass(frozen=True)
class Inputs:
    """The arguments of a loss."""

    leaves: dict[str, Tensor]  # the student, by the arguments' names; rows come first
    teacher: Teacher
    tokens: dict[str, Tensor] = field(default_factory=dict)  # labels and mask, where there are any
    shared: dict[tuple[torch.dtype, torch.dtype], Any] = field(
        default_factory=dict
    )  # what the bare GEMMs have in common


class _Normal:
    """Normal numbers, the same in every process on such a device."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self._dtype = dtype
        self._options: dict[str, Any] = {"generator": generator, "device": device}

    def rows(self, repeats: int, width: int, deviation: float) -> Tensor:
        distinct = deviation * torch.randn(DISTINCT_ROWS, width, **self._options)
        return distinct.to(self._dtype).repeat(repeats, 1)

    def weight(self, vocab: int, width: int, deviation: float) -> Tensor:
        size = vocab * width
        pool = torch.randn(min(size, _POOL), dtype=self._dtype, **self._options)
        pool *= deviation / math.sqrt(width)
        return pool.repeat(-(-size // _POOL))[:size].view(vocab, width)

    def labels(self, repeats: int, vocab: int) -> Tensor:
        return torch.randint(vocab, (DISTINCT_ROWS,), **self._options).repeat(repeats)


def _listing(log_p: Tensor, listed: int, repeats: int) -> fd.TopKTeacher:
    log_probs, ids = log_p.topk(listed)
    return fd.TopKTeacher(ids.repeat(repeats, 1), log_probs.repeat(repeats, 1))


def _teacher(case: Case, normal: _Normal, repeats: int) -> tuple[Teacher, Tensor | None]:
    """A teacher whose logits have deviation 3; labels where they are all that there is to learn."""
    if case.kind in ("logits", "linear_logits"):
        return fd.TeacherLogits(normal.rows(repeats, case.vocab, 3.0)), None
    if case.kind == "linear":
        hidden = normal.rows(repeats, case.teacher_width, 1.0)
        return fd.TeacherHead(hidden, normal.weight(case.vocab, case.teacher_width, 3.0)), None
    if case.has_list:
        log_p = normal.rows(1, case.vocab, 3.0).float().log_softmax(-1)
        return _listing(log_p, case.listed, repeats), None
    labels = normal.labels(repeats, case.vocab)
    ones = torch.ones(case.rows, 1, device=labels.device)  # the cheapest of teachers
    return fd.SampledTeacher(labels.unsqueeze(-1), ones), labels


def _student(case: Case, normal: _Normal, repeats: int) -> dict[str, Tensor]:
    """Logits of deviation 2, or a head that makes them."""
    if not case.has_head:
        return {"student_logits": normal.rows(repeats, case.vocab, 2.0)}
    return {
        "student_hidden": normal.rows(repeats, case.student_width, 1.0),
        "student_weight": normal.weight(case.vocab, case.student_width, 2.0),
    }


def _of_text(case: Case) -> tuple[dict[str, Tensor], Teacher]:
    student, teacher = text.heads(case.rows)
    names = ("student_hidden", "student_weight")
    leaves = {name: t.to(case.dtype) for name, t in zip(names, student, strict=True)}
    return leaves, fd.TeacherHead(*(t.to(case.dtype) for t in teacher))


def build_inputs(case: Case, device: torch.device = CPU) -> Inputs:
    """The inputs of a case, the same in every process."""
    tokens: dict[str, Tensor | None] = {"mask": case.mask()}
    if case.text:
        leaves, teacher = _of_text(case)
    else:
        normal, repeats = _Normal(case.dtype, device), case.rows // DISTINCT_ROWS
        leaves = _student(case, normal, repeats)
        teacher, tokens["labels"] = _teacher(case, normal, repeats)
    return Inputs(
        {
            name: leaf.detach().requires_grad_(not (case.frozen and name == "student_weight"))
            for name, leaf in leaves.items()
        },
        teacher,
        {name: tensor.to(device) for name, tensor in tokens.items() if tensor is not None},
    )
