"""Which cases there are: heads of real models, every kind, dtype and direction, and some more."""

from __future__ import annotations

import fnmatch
import itertools
from dataclasses import replace
from typing import NamedTuple

import torch

import fastdistill as fd

from . import text
from .cases import Case, Kind

_LISTED = 64
_DTYPES = (torch.bfloat16, torch.float32)
_KINDS: tuple[Kind, ...] = ("logits", "top_k", "linear", "linear_top_k")


class _Shape(NamedTuple):
    """Sizes of a family of models; as many rows as make a second or two of work."""

    vocab: int
    student: int  # hidden size
    teacher: int
    logits_rows: int
    linear_rows: int


_SMOLLM2 = _Shape(text.VOCAB, text.WIDTH, text.WIDTH, 768, 1024)
_LLAMA = _Shape(128256, 2048, 4096, 256, 128)
_QWEN = _Shape(151936, 896, 3584, 256, 128)
_GEMMA = _Shape(256000, 2304, 3584, 128, 64)


def _of_shape(shape: _Shape, kind: Kind, dtype: torch.dtype) -> Case:
    head = kind.startswith("linear")
    return Case(
        kind,
        shape.linear_rows if head else shape.logits_rows,
        shape.vocab,
        dtype,
        student_width=shape.student if head else 0,
        teacher_width=shape.teacher if kind == "linear" else 0,
        listed=_LISTED if kind.endswith("top_k") else 0,
        weighed=True,
        patience=2.0 if head else 1.0,
    )


def _grid() -> list[Case]:
    """Every kind, dtype and direction of every shape."""
    shapes = (_SMOLLM2, _LLAMA, _QWEN, _GEMMA)
    both = [_of_shape(*which) for which in itertools.product(shapes, _KINDS, _DTYPES)]
    return [replace(case, backward=backward) for backward in (True, False) for case in both]


def _more() -> list[Case]:
    """Other divergences, hard labels, chat data, real text, and memory of many tokens."""
    cases = []
    for divergence, dtype in itertools.product((fd.ReverseKL(), fd.JensenShannon()), _DTYPES):
        case = _of_shape(_QWEN, "logits", dtype)
        cases.append(replace(case, divergence=divergence, weighed=False, patience=0.5))
    for dtype in _DTYPES:
        head = _of_shape(_SMOLLM2, "linear", dtype)
        cases += [
            replace(head, half_masked=True),
            replace(head, text=True, rows=512, weighed=False),  # its memory is that of any numbers
            _of_shape(_SMOLLM2, "linear_labels", dtype),
        ]
    memory = replace(
        _of_shape(_QWEN, "linear", torch.float32), rows=2048, student_width=512,
        teacher_width=1024, timed=False, only=("fastdistill", "torch eager"),
    )  # fmt: skip
    return [*cases, memory, replace(memory, rows=4096)]


ALL: tuple[Case, ...] = (*_grid(), *_more())

_DEFAULT = (
    "logits-forward_kl-*-N256-V151936",
    "logits-forward_kl-bfloat16-*-V256000",
    "logits-forward_kl-bfloat16-*-V151936-forward_only",
    "logits-reverse_kl-bfloat16-*",
    "logits-jensen_shannon-bfloat16-*",
    "top_k-forward_kl-bfloat16-*-V151936-K64",
    "linear-forward_kl-*-N1024-V49152-D576x576",
    "linear-forward_kl-float32-N128-V151936-D896x3584",
    "linear-forward_kl-float32-*-D576x576-half_masked",
    "linear-forward_kl-float32-*-D576x576-text",
    "linear-forward_kl-float32-N1024-*-forward_only",
    "linear_top_k-forward_kl-float32-N1024-V49152-D576-K64",
    "linear_labels-cross_entropy-float32-*",
    "linear-forward_kl-float32-*-D512x1024",
)
"""Names of the cases that take about 35 minutes on two cores."""

DEFAULT = tuple(
    case for pattern in _DEFAULT for case in ALL if fnmatch.fnmatchcase(case.name, pattern)
)


def select(*, everything: bool, quick: bool, pattern: str | None) -> list[Case]:
    """The default cases, all, or of all those whose name contains the pattern.

    In a pattern ``*`` and ``?`` are wildcards. It is looked for in the name of the full case, which
    a quick one stands for.
    """
    chosen = ALL if everything or pattern else DEFAULT
    named = [case for case in chosen if fnmatch.fnmatchcase(case.name, f"*{pattern or ''}*")]
    return [case.quick() for case in named] if quick else named
