"""What is measured: sizes, dtype and inputs of each case, and the work that nobody can avoid."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

import fastdistill as fd
from fastdistill.teachers import Teacher

DISTINCT_ROWS = 8
"""Inputs repeat this many rows: their float64 truth costs the same for any number of rows."""

CPU = torch.device("cpu")

PARAMETERS = {fd.Renyi: (0.5,), fd.AlphaBeta: (0.5, 0.5)}
DIVERGENCES = tuple(cls(*PARAMETERS.get(cls, ())) for cls in fd.divergences.ALL)
"""One of each class, with its default parameters where it has them."""


@dataclass(frozen=True)
class Case:
    """One forward and backward pass of a loss, averaged over ``rows`` tokens."""

    kind: Literal["logits", "linear", "top_k"]
    rows: int
    vocab: int
    dtype: torch.dtype
    divergence: fd.Divergence = field(default_factory=fd.ForwardKL)
    student_width: int = 0  # hidden size, linear only
    teacher_width: int = 0
    listed: int = 0  # K, top_k only
    timed: bool = True
    weighed: bool = False  # whether peak memory is measured
    patience: float = 1.0  # multiplies the time that may be spent on each provider
    only: tuple[str, ...] = ()  # names of the providers; empty: all

    def __post_init__(self) -> None:
        if self.rows % DISTINCT_ROWS:
            raise ValueError(f"rows must be a multiple of {DISTINCT_ROWS}, got {self.rows}")

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        parts = [self.kind, self.divergence.name, dtype, f"N{self.rows}", f"V{self.vocab}"]
        if self.kind == "linear":
            parts.append(f"D{self.student_width}x{self.teacher_width}")
        if self.kind == "top_k":
            parts.append(f"K{self.listed}")
        return "-".join(parts)

    @property
    def logits_bytes(self) -> int:
        """Bytes of one (N, V) tensor of the case's dtype."""
        return self.rows * self.vocab * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Bytes that must move: every input read once, every gradient written once."""
        if self.kind == "linear":
            student = (self.rows + self.vocab) * self.student_width
            teacher = (self.rows + self.vocab) * self.teacher_width
            return (2 * student + teacher) * self.dtype.itemsize
        if self.kind == "top_k":
            return 2 * self.logits_bytes + self.rows * self.listed * (8 + 4)
        return 3 * self.logits_bytes

    @property
    def exps(self) -> int:
        """Exponentials that must be taken: one per logit of each dense side."""
        return self.rows * self.vocab * (1 if self.kind == "top_k" else 2)

    @property
    def flops(self) -> int:
        """Of the GEMMs: logits of both sides, gradients by the student's hidden and weight."""
        return 2 * self.rows * self.vocab * (3 * self.student_width + self.teacher_width)

    def quick(self) -> Case:
        """The same case, some hundred times smaller."""
        return replace(
            self,
            rows=max(DISTINCT_ROWS, self.rows // 8),
            vocab=self.vocab // 8,
            student_width=self.student_width // 4,
            teacher_width=self.teacher_width // 4,
        )


@dataclass(frozen=True)
class Inputs:
    """The tensors that want a gradient, by their argument's name, and the teacher."""

    leaves: dict[str, Tensor]
    teacher: Teacher


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
        weight = torch.randn(vocab, width, dtype=self._dtype, **self._options)
        return weight.mul_(deviation / math.sqrt(width))


def build_inputs(case: Case, device: torch.device = CPU) -> Inputs:
    """Student logits of deviation 2, teacher logits of deviation 3, given or made by a head."""
    normal, repeats = _Normal(case.dtype, device), case.rows // DISTINCT_ROWS
    teacher: Teacher
    if case.kind == "linear":
        leaves = {
            "student_hidden": normal.rows(repeats, case.student_width, 1.0),
            "student_weight": normal.weight(case.vocab, case.student_width, 2.0),
        }
        hidden = normal.rows(repeats, case.teacher_width, 1.0)
        teacher = fd.TeacherHead(hidden, normal.weight(case.vocab, case.teacher_width, 3.0))
    else:
        leaves = {"student_logits": normal.rows(repeats, case.vocab, 2.0)}
        if case.kind == "logits":
            teacher = fd.TeacherLogits(normal.rows(repeats, case.vocab, 3.0))
        else:
            log_p = normal.rows(1, case.vocab, 3.0).float().log_softmax(-1)
            log_probs, ids = log_p.topk(case.listed)
            teacher = fd.TopKTeacher(ids.repeat(repeats, 1), log_probs.repeat(repeats, 1))
    return Inputs({name: leaf.requires_grad_() for name, leaf in leaves.items()}, teacher)


def _full() -> tuple[Case, ...]:
    qwen, smollm2 = 151936, 49152
    half, single = torch.bfloat16, torch.float32
    logits = [Case("logits", 256, qwen, half, weighed=True), Case("logits", 256, qwen, single)]
    for divergence in (fd.ReverseKL(), fd.JensenShannon()):
        logits += [
            replace(case, divergence=divergence, weighed=False, patience=0.5) for case in logits[:2]
        ]
    linear = Case(
        "linear", 1024, smollm2, half, student_width=576, teacher_width=1024, weighed=True,
        patience=3.0,
    )  # fmt: skip
    memory = replace(
        linear, rows=2048, vocab=qwen, student_width=512, timed=False,
        only=("fastdistill", "torch eager"),
    )  # fmt: skip
    return (
        *logits,
        Case("top_k", 256, qwen, half, listed=64, weighed=True),
        linear,
        memory,
        replace(memory, rows=4096),
    )


FULL = _full()
QUICK = tuple(case.quick() for case in FULL)


def select(cases: tuple[Case, ...], pattern: str | None) -> list[Case]:
    """Cases whose name contains the pattern, in which ``*`` and ``?`` are wildcards."""
    return [case for case in cases if fnmatch.fnmatch(case.name, f"*{pattern or ''}*")]


def find(name: str) -> Case:
    """The case of that name."""
    return next(case for case in (*FULL, *QUICK) if case.name == name)
